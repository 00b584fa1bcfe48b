"""A training step of GPT-2 against PyTorch's: python tools/race_torch.py --rounds 7

`tools/bench_train.py` for these two; a Python with `numba` and `torch` is needed.
"""

import sys

from bench_train import main

if __name__ == "__main__":
    sys.exit(main(["--backends", "numba,torch", *sys.argv[1:]]))
