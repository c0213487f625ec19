"""The torch backend: quantized weights as modules whose codes sit in safetensors."""
