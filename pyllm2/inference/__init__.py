"""Load a model, generate text with it, compare it with another."""
