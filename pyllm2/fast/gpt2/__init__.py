"""GPT-2's training step in Numba."""
