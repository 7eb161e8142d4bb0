"""Wire: frames and bodies keep to their limits, and nothing but Malformed comes out of garbage."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from sagacity import wire
from sagacity.errors import Malformed
from sagacity.messages import ReleaseReservation
from sagacity.wire import (
    BODY_BYTES_MAX,
    CONTAINER_MAX,
    DEPTH_MAX,
    FORGET_RANGES_MAX,
    FRAME_BYTES_MAX,
    FRAME_ITEMS_MAX,
    HEADERS_BYTES_MAX,
    Answer,
    Answers,
    Beat,
    BodyReader,
    BooksAsked,
    BooksPage,
    Command,
    Commands,
    Forget,
    Forgot,
    Hello,
    Rejected,
    Reply,
    Report,
    Request,
    Witness,
)

WITNESS = Witness("c0ffee", 1, 2, 3, bytes(16), 4)
REQUEST = Request(wire.START, "s", 1, {"k": "v"}, b"\x80")
COMMAND = Command("s", 1, 0, 2, 1024, 1, {}, b"\x80")
ANSWER = Answer("s", 1, 0, 2, 1024, 1, wire.OK, b"\x80")
REPORT = Report("shard", 0, 7, "up", 9000, {"in_flight": 1})

Reader = Callable[[bytes], object]

READERS: list[Reader] = [
    wire.read_requests,
    wire.read_replies,
    wire.read_to_shard,
    wire.read_to_worker,
    wire.read_report,
]


class Toy(Struct, tag_field="type", tag="toy"):
    """A body."""

    n: int


# -- frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (wire.read_requests, [REQUEST, REQUEST]),
        (wire.read_requests, []),
        (wire.read_replies, [Reply(1, None, b"\x80"), Reply(2, 11, b"")]),
        (wire.read_to_shard, Hello(1, "c0ffee", "inventory", 2**63, 256, [WITNESS])),
        (wire.read_to_shard, Answers([ANSWER, ANSWER])),
        (wire.read_to_shard, Beat(7, 0)),
        (wire.read_to_shard, BooksPage(7, b"\x80")),
        (wire.read_to_shard, BooksPage(7, b"\x80", 12)),
        (wire.read_to_shard, Forgot(1, 7)),
        (wire.read_to_worker, Forget(WITNESS, 7, [(1, 9000), (9002, 9377)])),
        (wire.read_to_worker, Commands(WITNESS, [COMMAND])),
        (wire.read_to_worker, BooksAsked(7, b"\x80")),
        (wire.read_to_worker, Rejected("another cluster")),
        (wire.read_report, REPORT),
    ],
)
def test_what_is_sent_is_what_is_read(read: Reader, value: object) -> None:
    """Every message of the wire, there and back."""
    assert read(wire.encode(value)) == value


def test_tags_of_the_wire_never_change() -> None:
    """Two versions may meet in a rolling restart; Answer's is on disks, too."""
    kinds = (Hello, Answer, Answers, Beat, BooksPage, Forgot)
    assert [kind.__struct_config__.tag for kind in kinds] == [1, 2, 3, 4, 5, 7]
    kinds_to_worker = (Commands, BooksAsked, Rejected, Forget)
    assert [kind.__struct_config__.tag for kind in kinds_to_worker] == [16, 17, 18, 20]
    assert (wire.OK, wire.DECLINED, wire.FAILED) == (0, 1, 2)
    assert [wire.OUTCOMES[code] for code in (3, 4, 5, 6)] == [
        "refused_fenced",
        "refused_compensated",
        "refused_forgotten",
        "refused_unavailable",
    ]


def test_a_list_of_as_many_ranges_as_may_be_fits_into_a_frame() -> None:
    """And not one more is read: what a service keeps of a list is bounded."""
    low = 2**48
    ranges = [(low + 2 * at, low + 2 * at) for at in range(FORGET_RANGES_MAX)]
    packed = wire.encode(Forget(WITNESS, 2**63, ranges))
    assert len(packed) <= FRAME_BYTES_MAX
    assert wire.read_to_worker(packed) == Forget(WITNESS, 2**63, ranges)
    with pytest.raises(Malformed):
        wire.read_to_worker(wire.encode(Forget(WITNESS, 1, [*ranges, (1, 1)])))


@pytest.mark.parametrize("count", [1, 2, FRAME_ITEMS_MAX, FRAME_ITEMS_MAX + 1])
def test_requests_are_split_into_frames_at_the_limit_of_items(count: int) -> None:
    """One frame as long as it may be; none lost, none twice, in order."""
    items = [Reply(at, None, b"") for at in range(count)]
    made = list(wire.frames(items))
    assert len(made) == (1 if count <= FRAME_ITEMS_MAX else 2)
    assert [item for frame in made for item in wire.read_replies(frame)] == items


@pytest.mark.parametrize(
    ("split", "read"),
    [
        (
            lambda n, body: wire.frames([Reply(at, None, body) for at in range(n)]),
            wire.read_replies,
        ),
        (
            lambda n, body: wire.answer_frames(
                [Answer("s", 1, 0, 1, at, 1, 0, body) for at in range(n)]
            ),
            lambda frame: wire.read_to_shard(frame).items,  # type: ignore[union-attr]  # Answers
        ),
        (
            lambda n, body: wire.command_frames(
                WITNESS, [Command("s", 1, 0, 1, at, 1, {}, body) for at in range(n)]
            ),
            lambda frame: wire.read_to_worker(frame).items,  # type: ignore[union-attr]  # Commands
        ),
    ],
)
def test_batches_are_split_into_frames_at_the_limit_of_bytes(split: Any, read: Any) -> None:
    """MAXMSGSIZE closes the connection of a frame that is longer."""
    made = list(split(9, bytes(BODY_BYTES_MAX)))
    assert all(len(frame) <= FRAME_BYTES_MAX for frame in made)
    assert len(made) > 1
    assert sum(len(read(frame)) for frame in made) == 9


def test_nothing_to_send_is_no_frame() -> None:
    """An empty frame would wake a peer for nothing."""
    assert list(wire.frames([])) == []


def test_a_frame_is_read_up_to_its_limit() -> None:
    """One byte past it is refused before anything is decoded."""
    room = FRAME_BYTES_MAX - len(wire.encode([Reply(1, None, bytes(1 << 19))])) + (1 << 19)
    frame = wire.encode([Reply(1, None, bytes(room))])
    assert len(frame) == FRAME_BYTES_MAX
    assert len(wire.read_replies(frame)) == 1
    with pytest.raises(Malformed, match="at most"):
        wire.read_replies(frame + b"\0")


@pytest.mark.parametrize("read", READERS)
@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_garbage_is_malformed_and_nothing_else(read: Reader, frame: bytes) -> None:
    """G5: whoever sends it, the process lives."""
    with suppress(Malformed):
        read(frame)


VALID = [wire.encode([REQUEST]), wire.encode(Answers([ANSWER])), wire.encode(REPORT)]


@pytest.mark.parametrize("read", READERS)
@settings(max_examples=60)
@given(st.sampled_from(VALID), st.integers(0, 1 << 16), st.integers(0, 255), st.booleans())
def test_a_damaged_frame_is_malformed_or_another_frame(
    read: Reader, frame: bytes, at: int, to: int, cut: bool
) -> None:
    """One byte changed, or the end cut off."""
    at %= len(frame)
    with suppress(Malformed):
        read(frame[:at] if cut else frame[:at] + bytes([to]) + frame[at + 1 :])


@pytest.mark.parametrize("read", READERS)
def test_a_frame_nested_for_ever_is_malformed(read: Reader) -> None:
    """100 000 arrays in each other fit into a frame."""
    with pytest.raises(Malformed):
        read(b"\x91" * 100_000)


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "fit"),
    [
        ({}, True),
        ({"traceparent": "00-" + "a" * 52}, True),
        ({"k": "v" * (HEADERS_BYTES_MAX - 1)}, True),
        ({"k": "v" * HEADERS_BYTES_MAX}, False),
        ({"k" * 512: "v" * 512}, True),
        ({"k" * 512: "v" * 513}, False),
        ({"k": "é" * 511}, True),
        ({"k": "é" * 512}, False),
    ],
)
def test_headers_fit_up_to_their_limit_in_bytes(headers: dict[str, str], fit: bool) -> None:
    """1 KiB, counted as they travel."""
    assert wire.headers_fit(headers) is fit


# -- bodies ----------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=4), plain, max_size=5))
def test_a_plain_body_comes_back(body: dict[str, Any]) -> None:
    """Maps, lists, texts, integers, booleans, nil."""
    try:
        packed = wire.pack(body)
    except Malformed:  # deeper than the limit
        return
    assert wire.unpack(packed) == body


def nested(levels: int, leaf: object) -> dict[str, Any]:
    """Give a body of so many containers in each other."""
    value = leaf
    for _ in range(levels - 1):
        value = [value]
    return {"x": value}


@pytest.mark.parametrize("leaf", [1, "text", None])
def test_a_body_has_up_to_16_levels(leaf: object) -> None:
    """At the edge and one past it, both ways, whatever is innermost."""
    deep = nested(DEPTH_MAX, leaf)
    assert wire.unpack(wire.pack(deep)) == deep
    deeper = nested(DEPTH_MAX + 1, leaf)
    with pytest.raises(Malformed, match="levels"):
        wire.pack(deeper)
    with pytest.raises(Malformed, match="levels"):
        wire.unpack(msgpack.packb(deeper))


@pytest.mark.parametrize("value", [1.5, float("nan"), [0.0], {"x": {"y": 1e9}}])
def test_no_float_travels(value: object) -> None:
    """F6: neither out nor in."""
    with pytest.raises(Malformed, match="integer"):
        wire.pack({"amount": value})
    with pytest.raises(Malformed, match="integer"):
        wire.unpack(msgpack.packb({"amount": value}))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800", object(), {1, 2}])
def test_what_has_no_place_on_the_wire_is_not_packed(value: object) -> None:
    """More than 64 bits, half a character, things."""
    with pytest.raises(Malformed):
        wire.pack({"x": value})


@pytest.mark.parametrize(
    ("packed", "told"),
    [
        (b"", None),
        (b"\x01", "map"),
        (b"\x90", "map"),
        (b"\xc0", "map"),
        (b"\x82\xa1x\x01\xa1x\x02", "duplicate"),
        (b"\x81\xa1x\x82\xa1y\x01\xa1y\x02", "duplicate"),
        (b"\x81\xa1x\xd4\x05\x00", None),
        (b"\x81\xa1x\xd6\xff\x00\x00\x00\x01", None),
        (b"\x81\xa1x\xc7\x00\x05", None),
        (b"\x81\x01\x02", None),
        (b"\x81\xa1\xff\x02", None),
        (b"\x81\xa1x\xa1\xff", None),
        (b"\x81\xa1x\xa3\xed\xa0\x80", None),
        (b"\x81\xa1x", None),
        (b"\x80\x80", "left over"),
        (b"\xc1", None),
        (b"\x81\xa1x\xdd\xff\xff\xff\xff", None),
        (b"\x81\xa1x\xdf\xff\xff\xff\xff", None),
        (b"\x81\xa1x\xdb\xff\xff\xff\xff", None),
    ],
)
def test_a_strange_body_is_malformed(packed: bytes, told: str | None) -> None:
    """G5: no map, duplicate keys, extension types, other keys, bad text, cut, claimed lengths."""
    with pytest.raises(Malformed, match=told):
        wire.unpack(packed)


def test_a_body_is_read_up_to_its_limits() -> None:
    """Bytes and members, at the edge and one past it."""
    head = len(msgpack.packb({"x": "y" * (1 << 17)})) - (1 << 17)
    fits = msgpack.packb({"x": "y" * (BODY_BYTES_MAX - head)})
    assert len(fits) == BODY_BYTES_MAX
    wire.unpack(fits)
    with pytest.raises(Malformed, match="at most"):
        wire.unpack(fits + b"\0")
    wire.unpack(msgpack.packb({"x": [0] * CONTAINER_MAX}))
    with pytest.raises(Malformed):
        wire.unpack(msgpack.packb({"x": [0] * (CONTAINER_MAX + 1)}))


@settings(max_examples=400)
@given(st.binary(max_size=100))
def test_a_garbage_body_is_malformed_and_nothing_else(packed: bytes) -> None:
    """Strict and typed readers alike."""
    for read in (wire.unpack, BodyReader[Toy](Toy).read):
        with suppress(Malformed):
            read(packed)


# -- typed bodies ----------------------------------------------------------------------------------


def test_two_bodies_of_one_content_have_one_canonical_form() -> None:
    """The fingerprint does not depend on the order of keys."""
    read = BodyReader[Toy](Toy).read
    straight = msgpack.packb({"type": "toy", "n": 1})
    crooked = msgpack.packb({"n": 1, "type": "toy"})
    assert read(straight) == read(crooked) == (Toy(1), straight)


@pytest.mark.parametrize(
    "packed",
    [
        b"\x83\xa4type\xa3toy\xa1n\x01\xa1n\x01",
        b"\x83\xa4type\xa3toy\xa1n\x01\xa1x\xcb?\xf8\x00\x00\x00\x00\x00\x00",
        b"\x82\xa4type\xa3toy\xa1n\xcb?\xf0\x00\x00\x00\x00\x00\x00",
        b"\x82\xa4type\xa3tox\xa1n\x01",
        b"\x81\xa1n\x01",
        b"\x92\xa3toy\x01",
        b"\x82\xa4type\xa3toy\xa1n\xc3",
        b"\x82\xa4type\xa3toy\xa1n\x01\x00",
        b"\x82\xa4type\xa3toy\xa1n\xa11",
        b"\x83\xa4type\xa3toy\xa1n\x01\xa1x" + b"\x91" * 100_000 + b"\xc0",
        b"\x82\xa4type\xa3toy\xa1n\x01" + bytes(BODY_BYTES_MAX),
    ],
)
def test_what_msgspec_would_let_pass_is_refused(packed: bytes) -> None:
    """Duplicate keys, floats beside, 1.0, another type or none, an array, bool, text, depth."""
    with pytest.raises(Malformed):
        BodyReader[Toy](Toy).read(packed)


def test_a_body_without_a_type_needs_none() -> None:
    """Books have none."""

    class Bare(Struct):
        n: int

    assert BodyReader[Bare](Bare).read(msgpack.packb({"n": 1, "more": "x"}))[0] == Bare(1)


def test_a_reply_that_no_frame_can_hold_is_replaced_and_its_neighbours_travel() -> None:
    """A longer frame closes the connection of a whole shard, for good."""
    items = [
        Reply(1, None, b"a"),
        Reply(2, None, b"x" * (FRAME_BYTES_MAX + 1)),
        Reply(3, None, b"c"),
    ]
    read = [reply for frame in wire.frames(items) for reply in wire.read_replies(frame)]
    assert [(reply.request, reply.code) for reply in read] == [(1, None), (2, 13), (3, None)]


def test_a_command_that_no_frame_can_hold_is_left_out() -> None:
    """Its attempts end by time; those beside it travel."""
    witness = Witness("0" * 32, 0, 1, 1, b"", 1)
    long = Command("s", 1, 0, 1, 1, 1, {}, b"x" * (FRAME_BYTES_MAX + 1))
    short = Command("t", 1, 0, 1, 2, 1, {}, b"x")
    frames = list(wire.command_frames(witness, [short, long, short]))
    assert all(len(frame) <= FRAME_BYTES_MAX for frame in frames)
    read = [wire.read_to_worker(frame) for frame in frames]
    assert [c.saga_id for said in read if isinstance(said, Commands) for c in said.items] == [
        "t",
        "t",
    ]


def test_a_record_is_packed_as_its_map_is() -> None:
    """A handler may give either; a body on the wire does not tell which."""
    command = {"type": "ReleaseReservation", "saga_id": "s", "step": 1, "compensating": True}
    record = ReleaseReservation("s", 1, True)
    assert wire.unpack(wire.pack(record)) == command
    assert wire.pack(record) == wire.pack(command)
