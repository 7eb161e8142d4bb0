"""Slots: which shard owns a saga. Pure; knows nothing of sockets."""

from zlib import crc32

from msgspec import Struct

SLOTS = 1024


def slot_of(saga_id: str) -> int:
    """Give the slot that owns a saga.

    Args:
        saga_id: 1 to 128 ASCII characters, as SPEC 2 allows.

    Returns:
        A slot, 0 <= slot < 1024; the same on every machine and Python version.

    Source: CRC-32 (IEEE 802.3) of the ASCII bytes; golden vectors in tests/unit/test_slots.py.
    """
    return crc32(saga_id.encode()) & (SLOTS - 1)


class SlotMap(Struct, frozen=True):
    """Which shard owns each slot. Stored in the data directory; every process holds the same.

    Args:
        owners: 1024 shard indices, one per slot.
    """

    owners: tuple[int, ...]

    @classmethod
    def even(cls, shards: int) -> "SlotMap":
        """Give each of `shards` shards every `shards`-th slot."""
        return cls(tuple(slot % shards for slot in range(SLOTS)))

    def owner(self, saga_id: str) -> int:
        """Give the index of the shard that owns a saga."""
        return self.owners[slot_of(saga_id)]

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return max(self.owners) + 1

    def slots_of(self, shard: int) -> frozenset[int]:
        """Give the slots that a shard owns."""
        return frozenset(slot for slot, owner in enumerate(self.owners) if owner == shard)
