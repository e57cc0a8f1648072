"""GGUF in and out: lazy reader, block formats, adapter files and baking."""
