"""The bundled model's own recipe: a tiny SAM, a tiny language model and the mixer between them, from scratch."""
