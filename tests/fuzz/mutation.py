"""Plain mutation of valid cases, replayable: seed, target and index give the same case, everywhere.

Two layers: a value is changed inside (a key lost, an integer of 65 bits, nine levels more) and
packed again; then bytes are flipped, cut, doubled and spliced. Knows no target.
"""

import json
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import msgpack

CASE_BYTES_MAX = 1 << 16


class Chance:
    """Numbers from a seed, a name and an index; 0.3 us each."""

    __slots__ = ("_at", "_key", "_pool", "_round")

    def __init__(self, seed: int, name: str, index: int) -> None:
        self._key = b"%d %s %d" % (seed, name.encode(), index)
        self._pool = blake2b(self._key).digest()
        self._at = self._round = 0

    def below(self, bound: int) -> int:
        """Give 0 .. bound - 1; `bound` up to 2**32."""
        at = self._at
        if at >= 64:
            self._round += 1
            self._pool = blake2b(self._key + b" %d" % self._round).digest()
            at = 0
        self._at = at + 4
        return int.from_bytes(self._pool[at : at + 4], "little") % bound

    def pick(self, of: Sequence[Any]) -> Any:
        """Give one of several."""
        return of[self.below(len(of))]


# -- values ---------------------------------------------------------------------------------------


def _deep(depth: int, end: Any) -> Any:
    for _ in range(depth):
        end = [end]
    return end


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 15, 16, 31, 32, 127, 128, 255, 256, 1000, 1001, 1023, 1024),
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**59 - 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63)),
    *(0.0, 1.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "s", "s1", "\x00", "\n", "../../etc/passwd", "a" * 128, "a" * 129, "é", "e\u0301"),
    *("\u2028", "💥", "u42", "u999", "abc123", "sku_out_of_stock", "no_carrier", "9" * 5000),
    *("checkout", "cancel", "retry", "init", "error", "books", "list", "stock", "payments"),
    *([], {}, [[]], {"a": 1}, {"type": "checkout"}, _deep(9, 1), _deep(20, {}), [0] * 300),
)
PACKED_VALUES: tuple[Any, ...] = (
    *VALUES,
    *(
        b"",
        b"\x80",
        b"\xc1",
        b"\xff" * 16,
        bytes(16),
        b"a" * 300,
        msgpack.packb({"type": "cancel"}),
    ),
    *(msgpack.ExtType(1, b"x"), msgpack.Timestamp(0), {1: 2}, {b"type": b"checkout"}),
)
JSON_VALUES: tuple[Any, ...] = (*VALUES, "\ud800", "a\udfffb", 10**400, -(10**25))


_LIKE: dict[type, Sequence[Any]] = {
    kind: [value for value in VALUES if type(value) is kind] for kind in (int, str)
}


def change(value: Any, chance: Chance, values: Sequence[Any]) -> Any:
    """Give a value that differs somewhere; containers on the way are copied."""
    if isinstance(value, dict) and value:
        return _change_map(value, chance, values)
    if isinstance(value, list) and value:
        return _change_list(value, chance, values)
    if isinstance(value, bytes) and len(value) > 1 and chance.below(4):
        try:
            inner = msgpack.unpackb(value, strict_map_key=False)
        except Exception:
            return chance.pick(values)
        return pack(change(inner, chance, values))
    if isinstance(value, int) and not isinstance(value, bool) and chance.below(2):
        return value + chance.pick((-1, 1, 2, -value * 2, 1 << 10, 1 << 31))
    if chance.below(3):  # of another type it would only be refused, again and again
        return chance.pick(_LIKE.get(type(value), values))
    return chance.pick(values)


def _change_map(value: dict[Any, Any], chance: Chance, values: Sequence[Any]) -> Any:
    what = chance.below(16)
    changed = dict(value)
    key = chance.pick(list(value))
    if what == 0:
        del changed[key]
    elif what == 1:
        changed[chance.pick(("more", "type", "", "msg_id", "saga_id", "\x00"))] = chance.pick(
            values
        )
    elif what == 2:
        changed[chance.pick(("Type", key * 2 if isinstance(key, str) else "k"))] = changed.pop(key)
    elif what == 3:
        return chance.pick(values)
    else:
        changed[key] = change(value[key], chance, values)
    return changed


def _change_list(value: list[Any], chance: Chance, values: Sequence[Any]) -> Any:
    what = chance.below(16)
    at = chance.below(len(value))
    changed = list(value)
    if what == 0:
        del changed[at]
    elif what == 1:
        changed.insert(at, chance.pick(values))
    elif what == 2:
        changed *= chance.pick((2, 3, 101))
        del changed[1_000:]
    elif what == 3:
        return chance.pick(values)
    elif what == 4:
        other = chance.below(len(value))
        changed[at], changed[other] = changed[other], changed[at]
    else:
        changed[at] = change(value[at], chance, values)
    return changed


def pack(value: Any) -> bytes:
    """Pack whatever a mutation has made; what msgpack cannot say becomes nothing."""
    try:
        packed: bytes = msgpack.packb(value, unicode_errors="surrogatepass")
    except (OverflowError, ValueError, TypeError):
        return b"\xc0"
    return packed


# -- bytes ----------------------------------------------------------------------------------------


def _flip(case: bytearray, chance: Chance, _: Sequence[bytes]) -> None:
    if case:
        case[chance.below(len(case))] ^= 1 << chance.below(8)


def _set(case: bytearray, chance: Chance, _: Sequence[bytes]) -> None:
    if case:
        case[chance.below(len(case))] = chance.pick(
            (0, 1, 0x7F, 0x80, 0xC0, 0xC1, 0xD9, 0xDF, 0xFF)
        )


def _cut(case: bytearray, chance: Chance, _: Sequence[bytes]) -> None:
    if case:
        at = chance.below(len(case))
        del case[at : at + 1 + chance.below(chance.pick((1, 4, 64)))]


def _end(case: bytearray, chance: Chance, _: Sequence[bytes]) -> None:
    if case:
        del case[chance.below(len(case)) :]


def _double(case: bytearray, chance: Chance, _: Sequence[bytes]) -> None:
    if case:
        at = chance.below(len(case))
        case[at:at] = case[at : at + 1 + chance.below(32)]


def _insert(case: bytearray, chance: Chance, words: Sequence[bytes]) -> None:
    at = chance.below(len(case) + 1)
    case[at:at] = chance.pick(words)


def _overwrite(case: bytearray, chance: Chance, words: Sequence[bytes]) -> None:
    word = chance.pick(words)
    at = chance.below(len(case) + 1)
    case[at : at + len(word)] = word


_MUTATIONS: tuple[Callable[[bytearray, Chance, Sequence[bytes]], None], ...] = (
    *(_flip, _flip, _set, _cut, _end, _double, _insert, _overwrite),
)
WORDS: tuple[bytes, ...] = (
    *(
        b"\x00",
        b"\xff",
        b"\xc1",
        b"\x80",
        b"\x90",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
    ),
    *(
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xcf" + b"\xff" * 8,
        b"\xd3\x80" + bytes(7),
    ),
    *(b"\x81\xa1a\x01", b"\xc7\x0c\xff" + bytes(12), b"\xd6\xff\x00\x00\x00\x00", b"\x91" * 40),
    *(b"\xed\xa0\x80", b"\xa4type", b"\xcb\x7f\xf8" + bytes(6)),
)


def change_bytes(
    case: bytes, chance: Chance, corpus: Sequence[bytes], words: Sequence[bytes]
) -> bytes:
    """Give a case of which one to four places are changed, or that begins like another."""
    if chance.below(16) == 0:
        other = chance.pick(corpus)
        case = case[: chance.below(len(case) + 1)] + other[chance.below(len(other) + 1) :]
    changed = bytearray(case)
    for _ in range(1 + chance.below(4)):
        _MUTATIONS[chance.below(8)](changed, chance, words)
    return bytes(changed[:CASE_BYTES_MAX])


# -- cases ----------------------------------------------------------------------------------------


class Mutator:
    """Gives the index-th case of a seed.

    Args:
        name: of the target.
        corpus: valid cases.
        form: "msgpack" or "json", whose values are changed too; "bytes".
        words: that may stand anywhere.
    """

    def __init__(
        self, name: str, corpus: Sequence[bytes], form: str, words: Sequence[bytes] = ()
    ) -> None:
        self._name = name
        self._corpus = corpus
        self._words = (*WORDS, *words)
        self._values: list[Any] = []
        self._dump: Callable[[Any], bytes] = pack
        self._pool: Sequence[Any] = PACKED_VALUES
        if form == "msgpack":
            self._values = [msgpack.unpackb(case, strict_map_key=False) for case in corpus]
        elif form == "json":
            self._values = [json.loads(case) for case in corpus]
            self._dump, self._pool = _dump_json, JSON_VALUES

    def case(self, seed: int, index: int) -> bytes:
        """Give a case. One of 32 is valid as it stands."""
        chance = Chance(seed, self._name, index)
        at = chance.below(len(self._corpus))
        what = chance.below(32)
        if what == 0:
            return self._corpus[at]
        if not self._values or what < 12:
            return change_bytes(self._corpus[at], chance, self._corpus, self._words)
        value = self._values[at]
        for _ in range(1 + chance.below(2)):
            value = change(value, chance, self._pool)
        case = self._dump(value)[:CASE_BYTES_MAX]
        if what < 16:
            case = change_bytes(case, chance, self._corpus, self._words)
        return case


def _dump_json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except (ValueError, TypeError, RecursionError):
        return b"{}"
