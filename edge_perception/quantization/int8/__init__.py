"""INT8 detectors: a float ONNX graph in, the same graph with explicit Q/DQ out."""
