"""`python -m keras_residual.cli`."""

import sys

from keras_residual.cli import main

sys.exit(main())
