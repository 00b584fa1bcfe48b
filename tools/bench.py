"""`pyllm2 bench`, from a checkout: python tools/bench.py --shape 110M --threads 2"""

import sys

from pyllm2.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
