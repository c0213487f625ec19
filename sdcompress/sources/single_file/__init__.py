"""Single-file checkpoints in the layouts in which their authors trained them, read as diffusers pipelines.

`layouts` recognises a layout by the names of its tensors. `unet_names`, `vae_names`, `text_names` and
`transformer_names` say which of the checkpoint's tensors holds each tensor of diffusers. `conversion` turns that into
ranges of bytes. `reference_pipeline` finds the configs, `tokenizers` the vocabularies. `checkpoint_folder` caches the
small files, and `opening` puts everything together.
"""
