"""Grammars in llama.cpp's GBNF: written from JSON schemas, and checked before llama.cpp sees them."""
