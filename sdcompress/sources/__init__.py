"""What a model is, read without loading its weights."""
