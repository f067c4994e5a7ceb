"""Frames in memory that several readers share, and the kernels that read them.

``ring`` is the writer's side, ``reader`` another process's, ``lease`` what both hand out;
``transports`` says where the bytes live; ``preprocess_cpu`` and ``preprocess`` turn a frame into a
network's input. Nothing here imports CUDA before a CUDA transport or kernel is asked for.
"""
