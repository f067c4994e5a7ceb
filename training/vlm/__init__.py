"""The recipe of the embedded vision-language model (docs/demo_vlm.md)."""
