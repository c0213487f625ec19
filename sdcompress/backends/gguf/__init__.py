"""GGUF files of denoisers, written by the package `gguf`, for runtimes that read them."""
