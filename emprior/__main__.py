r"""`python -m emprior`."""

import sys

from emprior.cli import main

if __name__ == "__main__":
    sys.exit(main())
