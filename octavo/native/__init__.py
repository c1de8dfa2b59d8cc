"""The CPU core: kernels for quantised weights in C++17 (src/), their build, and the ctypes binding. No torch."""

from octavo.native.library import Library, NativeUnavailable, library

__all__ = ["Library", "NativeUnavailable", "library"]
