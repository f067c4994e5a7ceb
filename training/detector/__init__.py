"""The recipe of the embedded demo detector: train, evaluate, export (docs/demo_detector.md)."""
