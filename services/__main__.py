"""`python -m services --service NAME --index N --data DIR --run DIR`: one worker of a pool."""

import sys

from cluster.telemetry import guarded
from services.pool import main

if __name__ == "__main__":
    sys.exit(guarded(main))
