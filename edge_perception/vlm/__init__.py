"""Language and vision-language models: checkpoints, packed layers, decoding."""
