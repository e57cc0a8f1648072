"""The serving engine: one thread that owns every llama.cpp object and generates every answer."""
