"""Single-file checkpoints in the layouts their authors trained them in, read as diffusers pipelines.

`layouts` knows a layout from its tensors' names, `unet_names`, `vae_names`, `text_names` and `transformer_names` say
which of its tensors each of diffusers' is, `conversion` turns that into ranges of bytes, `templates` finds the configs,
`tokenizers` the vocabularies, `linked_folder` keeps the small files, and `opening` puts it together.
"""
