"""LoRA files: which layer of a component each low-rank update in them is for, and what it adds to the weight."""
