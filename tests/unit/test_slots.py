"""Slots: golden vectors. A change here would send sagas to shards that do not have them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sagacity.slots import SLOTS, SlotMap, slot_of

# CRC-32 of the id modulo 1024, written down once; never computed from the code under test.
GOLDEN = {
    "a": 579,
    "b": 1017,
    "c": 879,
    "checkout42": 334,
    "checkout43": 472,
    "123456789": 294,  # CRC-32's own check value is 0xCBF43926
    "A-z_0.9:": 184,
    "x" * 128: 567,
    "saga-0123456789abcdef0123456789abcdef": 820,
}


@pytest.mark.parametrize(("saga_id", "slot"), GOLDEN.items())
def test_the_slot_of_an_id_never_changes(saga_id: str, slot: int) -> None:
    """A7: the same on every machine and version."""
    assert slot_of(saga_id) == slot


def test_no_hash_seed_changes_a_slot() -> None:
    """Python's own hash() is salted for each process."""
    code = f"from sagacity.slots import slot_of; print([slot_of(i) for i in {list(GOLDEN)!r}])"
    for hash_seed in ("0", "4242"):
        said = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=60,
            text=True,
        )
        assert said.stdout.strip() == str(list(GOLDEN.values()))


def test_ids_spread_evenly() -> None:
    """A slot holds about its share, also of ids that count."""
    counts = [0] * SLOTS
    for at in range(100 * SLOTS):
        counts[slot_of(f"checkout{at}")] += 1
    assert min(counts) > 50
    assert max(counts) < 200


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 1024])
def test_an_even_map_gives_each_slot_to_one_shard(shards: int) -> None:
    """Each shard has its share, none is left over."""
    slots = SlotMap.even(shards)
    assert slots.shards == shards
    owned = [slots.slots_of(shard) for shard in range(shards)]
    assert sorted(slot for each in owned for slot in each) == list(range(SLOTS))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_the_owner_of_an_id_is_the_owner_of_its_slot() -> None:
    """Router and shard look it up in the same map."""
    slots = SlotMap.even(3)
    assert slots.owner("checkout42") == 334 % 3
