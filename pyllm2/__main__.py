"""`python -m pyllm2` is the command `pyllm2`."""

import sys

from pyllm2.cli import main

if __name__ == "__main__":
    sys.exit(main())
