"""Ids: what a saga id may look like, numbers, barrier keys, order ids. Pure.

`number` is given once to each saga by its shard: count << 10 | shard. It is dense per shard, so
that rows kept under it lie side by side (a random key costs four times as much, DESIGN 5).
"""

import re
import secrets

from sagacity.errors import Malformed
from sagacity.slots import SLOTS

SHARD_BITS = 10
SHARDS_MAX = 1 << SHARD_BITS
STEP_BITS = 4
STEPS_MAX = (1 << STEP_BITS) - 1  # steps are numbered from 1

ACTION = 0
COMPENSATION = 1
DIRECTIONS = ("action", "compensation")

SAGA_ID_PATTERN = r"\A[A-Za-z0-9._:-]{1,128}\Z"
_saga_id = re.compile(SAGA_ID_PATTERN)


def check_saga_id(text: str) -> None:
    """Refuse a text that is not 1 to 128 of the characters that SPEC 2 allows.

    Raises:
        Malformed: saying so.
    """
    if _saga_id.match(text) is None:
        raise Malformed("saga_id: 1 to 128 characters of A-Z a-z 0-9 . _ : -")


def new_saga_id() -> str:
    """Give an id that nobody else has: 128 random bits."""
    return "saga-" + secrets.token_hex(16)


def number_of(count: int, shard: int) -> int:
    """Give the number of the count-th saga of a shard; counts start at 1."""
    return count << SHARD_BITS | shard


def count_of(number: int) -> int:
    """Give the count inside a number."""
    return number >> SHARD_BITS


def shard_of(number: int) -> int:
    """Give the shard inside a number."""
    return number & (SHARDS_MAX - 1)


def barrier_key(number: int, step: int, direction: int) -> int:
    """Give the key under which a service remembers a command: an integer below 2^63.

    The action's key and its compensation's are neighbours: key and key | 1.
    """
    return number << (STEP_BITS + 1) | step << 1 | direction


def order_id(count: int, slot: int) -> str:
    """Give the order id of the count-th saga of a slot (SPEC 1): never reused."""
    return f"o{count * SLOTS + slot}"
