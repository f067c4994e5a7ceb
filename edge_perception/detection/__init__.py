"""Finding objects in one image: preprocess, infer, decode; and tracking over images."""
