"""CUDA C++ sources of the decoder's operators; ``ptx.cuh`` goes before each of them."""
