"""Readers of published checkpoints: every layout into ``PackedWeight``, GGUF into float."""
