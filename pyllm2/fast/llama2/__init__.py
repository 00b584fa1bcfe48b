"""Llama-2 at the speed of the memory: decoding and training in Numba."""
