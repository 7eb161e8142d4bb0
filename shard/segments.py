"""Segments: which ids were used, as sorted segments of hashes. Pure; knows bytes, no file.

An entry is the 16-byte hash of a saga's id, followed by 4 bytes of its *ordinal*, its place in the
order in which sagas ended. A segment is sorted and cut into parts by the first bits of the hash, so
that the one part that can hold an id is found by arithmetic. A segment whose sagas are all past
retention has no ordinals any more: 16 bytes an id, for ever.

Two bytes more of each entry stand in memory as the segment's *prints*, those of small segments once
more in a *sieve* of all that are alike. They err only towards yes: once in some five thousand times
a part is read in vain. An ordinary filter of bits takes 1.3 us an id to build in Python, where
slices of bytes make these in 0.15.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b

from msgspec import Struct

HASH_BYTES = 16
ORDINAL_BYTES = 4
ENTRY_BYTES = HASH_BYTES + ORDINAL_BYTES
ORDINALS_MAX = 1 << (8 * ORDINAL_BYTES)
PART_ENTRIES = 400  # about 8 KB a part
BUCKET_ENTRIES = 12  # prints that are looked through for one id
SIEVE_BITS_MAX = 13  # of segments up to some 98 000 entries: those of three levels
SEGMENTS_PER_LEVEL = 8  # so many of one size are merged into one of the next

_TOP_BITS = 32  # of a hash, which say where it stands in a segment
_MARK_AT, _MARK_BYTES = 14, 2


def hash_of(saga_id: str) -> bytes:
    """Give the 16 bytes by which an id is remembered for ever."""
    return blake2b(saga_id.encode(), digest_size=HASH_BYTES).digest()


def entry_of(saga_id: str, ordinal: int) -> bytes:
    """Give the entry of a finished saga."""
    return hash_of(saga_id) + ordinal.to_bytes(ORDINAL_BYTES, "big")


class Prints:
    """Two bytes of each entry of a segment, in its order, in buckets by the first bits.

    Args:
        bits: that choose the bucket.
        offsets: of each bucket's first entry, and the end.
        marks: two bytes an entry.
    """

    def __init__(self, bits: int, offsets: "array[int]", marks: bytearray) -> None:
        self.bits = bits
        self.offsets = offsets
        self.marks = marks

    @classmethod
    def empty(cls, size: int) -> "Prints":
        """Give the prints of a segment that will have `size` entries; `grow` them part by part."""
        return cls((size // BUCKET_ENTRIES).bit_length(), array("I", [0]), bytearray())

    def grow(self, entries: Sequence[bytes], first_bucket: int, buckets: int) -> None:
        """Take in the sorted entries of the next buckets."""
        before = self.offsets[-1]
        for bucket in range(first_bucket + 1, first_bucket + buckets):
            self.offsets.append(before + bisect_left(entries, _bound(bucket, self.bits)))
        self.offsets.append(before + len(entries))
        marks = bytearray(_MARK_BYTES * len(entries))
        if entries:
            joined, width = b"".join(entries), len(entries[0])
            for at in range(_MARK_BYTES):
                marks[at::_MARK_BYTES] = joined[_MARK_AT + at :: width]
        self.marks += marks

    @property
    def size(self) -> int:
        """Give how many entries they are of."""
        return self.offsets[-1]

    def may_hold(self, top: int, mark: bytes) -> bool:
        """Say whether the segment may hold an id: never no if it does.

        Args:
            top: the first 32 bits of its hash.
            mark: `mark_of` its hash.
        """
        bucket = top >> (_TOP_BITS - self.bits)
        end = self.offsets[bucket + 1] * _MARK_BYTES
        at = self.marks.find(mark, self.offsets[bucket] * _MARK_BYTES, end)
        while at % _MARK_BYTES == 1:  # between two entries; -1 is one as well
            if at < 0:
                return False
            at = self.marks.find(mark, at + 1, end)
        return True

    def pack(self) -> bytes:
        """Give bytes from which `unpack` makes them again on any machine of ours."""
        return self.bits.to_bytes(1, "big") + self.offsets.tobytes() + bytes(self.marks)

    @classmethod
    def unpack(cls, packed: bytes) -> "Prints":
        """Make prints out of what `pack` gave.

        Raises:
            ValueError: it has given none of this length.
        """
        offsets = array("I")
        bits = packed[0] if packed else _TOP_BITS
        end = 1 + offsets.itemsize * ((1 << bits) + 1)
        if bits >= _TOP_BITS or len(packed) < end:
            raise ValueError(f"prints of {bits} bits in {len(packed)} bytes")
        offsets.frombytes(packed[1:end])
        return cls(bits, offsets, bytearray(packed[end:]))


class Sieve:
    """The prints of several segments, bucket by bucket together: one look stands for one at each.

    Most ids that are asked for are new, and in no segment. Of large segments, which are few, the
    prints are not held a second time: their sieve lets everything through.

    Args:
        bits: of the prints of all of them.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.segments: list[tuple[Segment, Prints]] = []
        self._shift = _TOP_BITS - bits
        self._marks = [b""] * (1 << bits) if bits <= SIEVE_BITS_MAX else None

    def add(self, segment: "Segment", prints: Prints) -> None:
        """Take in a segment."""
        self.segments.append((segment, prints))
        if self._marks is not None:
            ends = [_MARK_BYTES * offset for offset in prints.offsets]
            marks = prints.marks
            self._marks = [
                known + marks[begin:end]
                for known, begin, end in zip(self._marks, ends, ends[1:], strict=False)
            ]

    def may_hold(self, top: int, mark: bytes) -> bool:
        """Say whether one of the segments may hold an id: never no if one does."""
        if self._marks is None:
            return True
        marks = self._marks[top >> self._shift]
        at = marks.find(mark)
        while at % _MARK_BYTES == 1:  # between two entries; -1 is one as well
            if at < 0:
                return False
            at = marks.find(mark, at + 1)
        return True


def sifted(segments: Iterable[tuple["Segment", Prints]]) -> list[Sieve]:
    """Make the sieves of some segments."""
    sieves: dict[int, Sieve] = {}
    for segment, prints in segments:
        if prints.bits not in sieves:
            sieves[prints.bits] = Sieve(prints.bits)
        sieves[prints.bits].add(segment, prints)
    return list(sieves.values())


class Segment(Struct, frozen=True):
    """A segment's description; the prints stand beside it.

    Args:
        id: grows with each segment.
        level: 0 for one that a compaction made, else one above those that were merged into it.
        bits: of the hash, that choose the part.
        width: bytes of an entry: ENTRY_BYTES, or HASH_BYTES where no ordinal is left.
        size: entries.
        high: the highest ordinal in it.
        live: False while it is made, and when its entries stand in another: its parts can go.
    """

    id: int
    level: int
    bits: int
    width: int
    size: int
    high: int
    live: bool

    @property
    def is_sound(self) -> bool:
        """Whether every field is what it can be; it says which rows are read."""
        return (
            0 <= self.id < 1 << (63 - _TOP_BITS)
            and 0 <= self.bits <= _TOP_BITS
            and self.width in (ENTRY_BYTES, HASH_BYTES)
            and self.size >= 0
        )

    def part_of(self, top: int) -> int:
        """Give the key of the part that holds the hashes with these first 32 bits."""
        return self.id << _TOP_BITS | top >> (_TOP_BITS - self.bits)

    def part_keys(self) -> range:
        """Give the keys of all its parts."""
        return range(self.id << _TOP_BITS, (self.id << _TOP_BITS) + (1 << self.bits))


def top_of(hashed: bytes) -> int:
    """Give the first 32 bits of a hash."""
    return int.from_bytes(hashed[:4], "big")


def mark_of(hashed: bytes) -> bytes:
    """Give the two bytes of a hash that stand in the prints."""
    return hashed[_MARK_AT : _MARK_AT + _MARK_BYTES]


def part_bits(size: int) -> int:
    """Give how many bits cut a segment of `size` entries into parts of about PART_ENTRIES."""
    return (size // PART_ENTRIES).bit_length()


def find_in(part: bytes, width: int, hashed: bytes) -> bytes | None:
    """Give the entry of a hash in a part."""
    at = part.find(hashed)
    while at >= 0 and at % width:  # by chance, across two entries
        at = part.find(hashed, at + 1)
    return part[at : at + width] if at >= 0 else None


def entries_in(part: bytes, width: int) -> list[bytes]:
    """Give a part's entries."""
    return [part[at : at + width] for at in range(0, len(part), width)]


def cut(entries: Sequence[bytes], first: int, count: int, bits: int) -> Iterator[list[bytes]]:
    """Cut sorted entries into parts `first` to `first + count`, each those of its `bits` bits."""
    begin = 0
    for part in range(first, first + count):
        end = len(entries)
        if part + 1 < first + count:
            end = bisect_left(entries, _bound(part + 1, bits), begin)
        yield list(entries[begin:end])
        begin = end


def _bound(part: int, bits: int) -> bytes:
    """Give what the first hash of a part is not below."""
    return (part << (_TOP_BITS - bits)).to_bytes(4, "big")


def due(segments: Sequence[Segment], forgotten: int, per_level: int | None = None) -> list[Segment]:
    """Give the segments that are to become one now: a full level, or one that is past retention.

    Args:
        segments: the live ones.
        forgotten: ordinals below are past retention.
        per_level: so many make a level full; SEGMENTS_PER_LEVEL where it is not said.
    """
    full = per_level or SEGMENTS_PER_LEVEL
    for level in sorted({segment.level for segment in segments}):
        alike = [segment for segment in segments if segment.level == level]
        if len(alike) >= full:
            return alike[:full]
    for segment in segments:
        if segment.width == ENTRY_BYTES and segment.high < forgotten:
            return [segment]
    return []


def unit_bits(size: int) -> int:
    """Give how many bits cut the merging of a segment of `size` entries into pieces of work."""
    return max(0, part_bits(size) - 3)


def entries_of_unit(
    segment: Segment, unit: int, bits: int, read_part: Callable[[int], bytes]
) -> list[bytes]:
    """Give a segment's entries whose hashes begin with the `bits` bits of `unit`."""
    keys = segment.part_keys()
    if segment.bits >= bits:
        finer = segment.bits - bits
        found: list[bytes] = []
        for part in range(unit << finer, (unit + 1) << finer):
            found += entries_in(read_part(keys[part]), segment.width)
        return found
    entries = entries_in(read_part(keys[unit >> (bits - segment.bits)]), segment.width)
    begin = bisect_left(entries, _bound(unit, bits))
    end = len(entries)
    if unit + 1 < 1 << bits:
        end = bisect_left(entries, _bound(unit + 1, bits), begin)
    return entries[begin:end]


def as_wide(entries: list[bytes], width: int) -> list[bytes]:
    """Give entries `width` bytes wide: without their ordinals, or with ordinal 0 where none is.

    Ordinal 0 is past retention wherever an entry has lost its own.
    """
    if not entries or len(entries[0]) == width:
        return entries
    return [entry[:width].ljust(width, b"\0") for entry in entries]
