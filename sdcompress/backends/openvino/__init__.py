"""OpenVINO IR: made of ONNX folders, and run in place of ONNX Runtime."""
