"""`python -m shard`: a shard. `python -m shard verify`: a look at the journals of stopped ones."""

import sys

from shard import process, verify

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(verify.main(words[1:]) if words[:1] == ["verify"] else process.main(words))
