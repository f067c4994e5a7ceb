"""Offline quantisation of language models: methods, calibration, export, evaluation."""
