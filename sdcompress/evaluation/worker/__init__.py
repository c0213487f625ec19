"""The child process that opens a pipeline, draws with it and measures it, or scores pictures."""
