"""Quality metrics, one file each. They get pictures and prompts, and know no steps, backends or pipelines."""
