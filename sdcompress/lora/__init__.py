"""LoRA files: their keys, their updates for the layers of a component, and adding these to weights."""
