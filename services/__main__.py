"""`python -m services --service NAME --index N --data DIR --run DIR`: one worker of a pool."""

import sys

from services.pool import main

if __name__ == "__main__":
    sys.exit(main())
