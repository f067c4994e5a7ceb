"""edge_perception: INT8 detectors and an INT4 vision-language model on one edge GPU, over ROS 2."""

__version__ = "0.1.0"
