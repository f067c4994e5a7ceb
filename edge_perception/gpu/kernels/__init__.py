"""CUDA C++ sources, compiled at run time by ``gpu.kernel_module``."""
