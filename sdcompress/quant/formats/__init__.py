"""The quantization formats, one module a family. A module is found by its `FORMATS`, or by a class with a `name`."""
