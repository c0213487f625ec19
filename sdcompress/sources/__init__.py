"""What a model is, without its weights: reading folders, checkpoints, pickles, the hub and the catalog."""
