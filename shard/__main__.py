"""`python -m shard`."""

import sys

from shard.process import main

if __name__ == "__main__":
    sys.exit(main())
