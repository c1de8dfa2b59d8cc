"""The CPU core: kernels for quantised weights in C++17 (src/), their build, and the ctypes binding. No torch.

Imports nothing: `python -m octavo.native.build` must find its own module unimported, and needs no numpy.
"""
