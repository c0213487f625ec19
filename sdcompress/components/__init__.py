"""What sdcompress knows about the families of components."""
