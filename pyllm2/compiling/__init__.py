"""How kernels written in Python and C become machine code."""
