"""Detectors and classifiers of other projects to ONNX and a manifest; offline, needs torch."""
