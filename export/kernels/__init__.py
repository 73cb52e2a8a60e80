"""CUDA sources to PTX and PTX to machine code, with NVIDIA's compilers as wheels, without a GPU."""
