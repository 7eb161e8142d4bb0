"""`python -m shard`: a shard. `verify` and `evidence`: a look at the journals of stopped ones."""

import sys

from shard import evidence, process, verify

LOOKS = {"verify": verify.main, "evidence": evidence.main}

if __name__ == "__main__":
    words = sys.argv[1:]
    look = LOOKS.get(words[0]) if words else None
    sys.exit(look(words[1:]) if look is not None else process.main(words))
