"""One file per family of pipelines, and per class of component that several families share (FAMILY, ARCHITECTURES)."""
