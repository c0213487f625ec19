"""ONNX: exporting pipelines, and running them with ONNX Runtime."""
