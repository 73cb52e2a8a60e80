"""CUDA kernels of our own: their sources, the PTX that is made of them, and what loads it.

`shipped.py` declares them; the .cu files beside it are compiled by `export/compile_kernels.py` and
run on the CPU by the tests (`tests/runtime/kernel_emulation.py`).
"""
