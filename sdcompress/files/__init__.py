"""Files and folders of any kind: safetensors, the cache, artifacts."""
