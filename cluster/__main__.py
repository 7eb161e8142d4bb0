"""`python -m cluster`: the same command line as `sagacity`."""

import sys

from cluster.cli import main

sys.exit(main())
