"""What is known about families of pipelines and classes of components, one file each."""
