"""Run the command line: `python -m keras_residual`."""

import sys

from keras_residual.cli import main

if __name__ == "__main__":
    sys.exit(main())
