"""Files and folders on disk, whatever is in them: safetensors, the cache, artifacts."""
