"""Bytes to named arrays and back. Nothing here knows what a model computes."""
