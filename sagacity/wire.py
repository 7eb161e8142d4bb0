"""Frames and envelopes: what travels between processes, and every limit on it.

A frame is one msgpack array and one ZeroMQ message part; every frame is a batch. Bodies (SPEC 1)
are packed once, by who writes them, and pass through router and shards as bytes.

    client -> router -> shard     [Request, ...]          shard -> router -> client   [Reply, ...]
    shard  -> worker              Commands | Proceed | BooksAsked | Rejected | Forget
    worker -> shard               Hello | Beat | Begun | Answers | BooksPage | Forgot
    router -> supervisor          [Request, ...]          supervisor -> router        [Reply, ...]
    child  -> supervisor          Report

The only room, with shard/codec, that encodes and decodes: msgspec reads what is typed, msgpack
what is not. Records are frozen Structs without garbage-collector tracking: 0.09 us to make one,
where a frozen dataclass costs 1.70 (DESIGN 8).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Generic, TypeVar

import msgpack
import msgspec
from msgspec import Meta, Struct

from sagacity.errors import InternalError, Malformed, SagacityError
from sagacity.ranges import Range

PROTOCOL: Final = 1
MSGPACK_VERSION: Final = ".".join(map(str, msgpack.version))

FRAME_BYTES_MAX: Final = 1 << 20  # one frame; a longer one closes its connection (MAXMSGSIZE)
FRAME_ITEMS_MAX: Final = 16_384  # requests, replies, commands or answers in one frame
BODY_BYTES_MAX: Final = 256 << 10  # one body; 100 lines of the longest SKU are 8 KiB
HEADERS_BYTES_MAX: Final = 1 << 10  # keys and values of one envelope's headers
DEPTH_MAX: Final = 16  # containers inside containers, in a body
CONTAINER_MAX: Final = 10_000  # members of one container, in a body
FORGET_RANGES_MAX: Final = 4_096  # of one list; 80 KiB at most
ERRORS_KEPT: Final = 256  # packed; who refuses thousands a second says the same to most of them

# Kinds of request. Those from STATUS on are about the cluster, and name a target (a shard's index
# or nothing) where the others name a saga.
START: Final = 1  # answered with the saga's outcome
SUBMIT: Final = 2  # a start that is answered as soon as it is durable
CANCEL: Final = 3
RETRY: Final = 4
SHOW: Final = 5
RECALL: Final = 6  # a start for which the router has no room: answered if its id is known
STATUS: Final = 16
BOOKS: Final = 17
LIST: Final = 18
RECALLS_SUBMIT: Final = {"recalls": "submit"}  # headers of a RECALL that was a SUBMIT
KINDS: Final = {  # those that a client may ask; a RECALL is the router's alone
    START: "start",
    SUBMIT: "submit",
    CANCEL: "cancel",
    RETRY: "retry",
    SHOW: "show",
    STATUS: "status",
    BOOKS: "books",
    LIST: "list",
}

# Outcomes of a command (SPEC 3). From REFUSED on they are no outcomes and never move a saga.
OK: Final = 0
DECLINED: Final = 1
FAILED: Final = 2
REFUSED: Final = 3
REFUSED_FENCED: Final = 3
REFUSED_COMPENSATED: Final = 4
REFUSED_FORGOTTEN: Final = 5
REFUSED_UNAVAILABLE: Final = 6
OUTCOMES: Final = (
    "ok",
    "declined",
    "failed",
    "refused_fenced",
    "refused_compensated",
    "refused_forgotten",
    "refused_unavailable",
)

Headers = dict[str, str]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]  # what a database can hold, too


class Request(Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """What a client asks.

    Args:
        kind: one of KINDS.
        saga_id: the saga it is about, or a cluster kind's target.
        request: the asker's own number, given back in the reply; unique while it is open.
        headers: at most HEADERS_BYTES_MAX; unknown keys are ignored. `traceparent` lives here.
        body: a packed body of SPEC 1, or nothing.
    """

    kind: int
    saga_id: str
    request: int
    headers: Headers
    body: bytes


class Reply(Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """The one answer to a request.

    Args:
        request: the number that came with the request.
        code: None for an answer, else a code of SPEC 4.
        body: a packed body.
    """

    request: int
    code: int | None
    body: bytes


class Witness(Struct, frozen=True, array_like=True, gc=False):
    """What a shard's journal had reached when it sent commands; a service keeps the highest.

    Args:
        cluster_id: 32 hexadecimal digits.
        shard: index.
        epoch: of the shard.
        seq: last sequence that was durable.
        chain: the chain's 16 bytes at `seq`.
        number: highest number given to a saga.
    """

    cluster_id: str
    shard: int
    epoch: int
    seq: int
    chain: bytes
    number: int


class Command(Struct, frozen=True, array_like=True, gc=False):
    """One action or compensation for a service; `epoch` is that of the saga's slot."""

    saga_id: str
    step: int
    direction: int
    epoch: int
    number: int
    attempt: int
    headers: Headers
    body: bytes


class Answer(Struct, frozen=True, array_like=True, tag=2, gc=False):
    """What became of a command: its first fields, the outcome and the reply's body.

    A journal entry too (the tag is the entry's): an outcome is written as it came. `body` of a
    refusal `fenced` is the packed epoch that the service knows.
    """

    saga_id: str
    step: int
    direction: int
    epoch: int
    number: int
    attempt: int
    outcome: int
    body: bytes


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """A worker that serves says who it is; it gets as many commands as `capacity` allows.

    Args:
        protocol: PROTOCOL.
        cluster_id: that its database belongs to.
        service: name of its service.
        incarnation: random, for each start of the process.
        capacity: commands it takes before it has answered one.
        witnesses: the highest witness that its service holds of each shard.
    """

    protocol: int
    cluster_id: str
    service: str
    incarnation: int
    capacity: int
    witnesses: list[Witness]


class Answers(Struct, frozen=True, array_like=True, tag=3):
    """A worker's answers, a batch."""

    items: list[Answer]


class Beat(Struct, frozen=True, array_like=True, tag=4):
    """A worker lives: sent by the thread that does the work.

    `capacity` is 0 while its database is full, busy or fails, else as in its Hello.
    """

    incarnation: int
    capacity: int


class BooksPage(Struct, frozen=True, array_like=True, tag=5):
    """A page of a service's books, as asked by BooksAsked with the same `token`.

    `code` is that of the reply which will carry the body: None for a page, else it is an error's.
    """

    token: int
    body: bytes
    code: int | None = None


class Begun(Struct, frozen=True, array_like=True, tag=6, gc=False):
    """A worker is about to run a command alone; it waits for Proceed before it does.

    So its death from here to the answer is known to be about this command.
    """

    number: int
    step: int
    direction: int
    attempt: int


class Forgot(Struct, frozen=True, array_like=True, tag=7):
    """A list of this shard is applied: what it says is durable in the service's database.

    Each list is answered for itself: they may be applied in any order.
    """

    shard: int
    list_number: int


class Commands(Struct, frozen=True, array_like=True, tag=16):
    """Commands for a worker, a batch, with the shard's witness once.

    With `alone` each may be what killed a worker before: it runs in a transaction of its own,
    after Begun and Proceed.
    """

    witness: Witness
    items: list[Command]
    alone: bool = False


class BooksAsked(Struct, frozen=True, array_like=True, tag=17):
    """Asks a worker for a page of its service's books; `body` says which."""

    token: int
    body: bytes


class Rejected(Struct, frozen=True, array_like=True, tag=18):
    """Why a shard does not work with this worker: another cluster, protocol or service."""

    text: str


class Proceed(Struct, frozen=True, array_like=True, tag=19, gc=False):
    """Answers Begun, with its fields: run the command; or, where it is not `wanted`, drop it."""

    number: int
    step: int
    direction: int
    attempt: int
    wanted: bool


class Forget(Struct, frozen=True, array_like=True, tag=20):
    """A list: sagas of a shard that are final and past retention, for their service to forget.

    Args:
        witness: as of commands; it says which shard, and fences a list of an older epoch.
        list_number: of this shard's lists; answered by Forgot.
        ranges: normal ranges of counts (ids.count_of), both ends included.
    """

    witness: Witness
    list_number: int
    ranges: Annotated[list[Range], Meta(max_length=FORGET_RANGES_MAX)]


class Unknown(Struct, frozen=True, array_like=True, tag=21):
    """Answers a heartbeat, whose incarnation it names, of a worker whose HELLO never came whole.

    The worker has to say HELLO again.
    """

    incarnation: int


class Report(Struct, frozen=True, array_like=True, gc=False):
    """A child tells its supervisor how it is, each second and at each change.

    Args:
        role: router, shard or a service's name.
        index: among its like.
        pid: of the process.
        state: "starting", "standby" or "up".
        metrics_port: where it serves /metrics on 127.0.0.1; 0 before it does.
        facts: small integers for `status`, such as sagas in flight.
    """

    role: str
    index: int
    pid: int
    state: str
    metrics_port: int
    facts: dict[str, int]


ToShard = Hello | Answers | Beat | BooksPage | Begun | Forgot
ToWorker = Commands | BooksAsked | Rejected | Proceed | Forget | Unknown

T = TypeVar("T")

encode = msgspec.msgpack.Encoder().encode


class FrameReader(Generic[T]):
    """Decodes frames of one type; raises Malformed for anything else. Give it whole frames."""

    def __init__(self, kind: Any) -> None:
        self.decode: Callable[[bytes], T] = msgspec.msgpack.Decoder(kind).decode

    def read(self, frame: bytes) -> T:
        """Decode a frame.

        Raises:
            Malformed: it is over a limit, truncated, or of another shape.
        """
        if len(frame) > FRAME_BYTES_MAX:
            raise Malformed(f"a frame has at most {FRAME_BYTES_MAX} bytes")
        try:
            return self.decode(frame)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError) as error:
            raise Malformed(f"unreadable frame: {error}") from None


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """Make a decoder of bodies that our own processes wrote; it raises ValueError for others."""
    decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(kind).decode
    return decode


read_requests = FrameReader[list[Request]](list[Request]).read
read_replies = FrameReader[list[Reply]](list[Reply]).read
read_to_shard = FrameReader[ToShard](ToShard).read
read_to_worker = FrameReader[ToWorker](ToWorker).read
read_report = FrameReader[Report](Report).read


def frames(items: Sequence[Struct]) -> Iterator[bytes]:
    """Encode requests or replies into as few frames as the limits allow.

    A longer frame would close the connection for good. A reply that no frame can hold is replaced
    by an error of code 13; a request never is so long, its body has BODY_BYTES_MAX.
    """
    return _split(items, encode)


def answer_frames(answers: list[Answer]) -> Iterator[bytes]:
    """Encode answers into as few frames as the limits allow; one too long for any is left out."""
    return _split(answers, lambda some: encode(Answers(some)))


def answer_to(command: Command, outcome: int, body: bytes) -> Answer:
    """Answer a command: its own first fields, the outcome, a packed body."""
    return Answer(
        command.saga_id,
        command.step,
        command.direction,
        command.epoch,
        command.number,
        command.attempt,
        outcome,
        body,
    )


def command_frames(witness: Witness, commands: list[Command]) -> Iterator[bytes]:
    """Encode commands into as few frames as the limits allow; one too long for any is left out.

    Such a command is never answered, and its attempts end by time.
    """
    return _split(commands, lambda some: encode(Commands(witness, some)))


def _split(items: Any, encoded: Callable[[Any], bytes]) -> Iterator[bytes]:
    """Encode all items at once, or in halves where the frame would be over a limit."""
    if not items:
        return
    if len(items) <= FRAME_ITEMS_MAX:
        frame = encoded(items)
        if len(frame) <= FRAME_BYTES_MAX:
            yield frame
            return
        if len(items) == 1:
            if isinstance(items[0], Reply):
                error = InternalError("the answer is too long to travel")
                yield encode([Reply(items[0].request, error.code, pack_error(error))])
            return
    half = len(items) // 2
    yield from _split(items[:half], encoded)
    yield from _split(items[half:], encoded)


def headers_fit(headers: Headers) -> bool:
    """Say whether headers keep to HEADERS_BYTES_MAX."""
    if not headers:
        return True
    return sum(len(key) + len(value) for key, value in headers.items()) * 4 <= (
        HEADERS_BYTES_MAX
    ) or (sum(len(k.encode()) + len(v.encode()) for k, v in headers.items()) <= HEADERS_BYTES_MAX)


def pack(body: Any) -> bytes:
    """Pack a body: a Struct of `messages`, or plain maps, lists, texts and integers.

    Raises:
        Malformed: it holds something that has no place on the wire: a float, bytes, a surrogate,
            an integer of more than 64 bits, a key that is no text.
    """
    try:
        if isinstance(body, Struct):
            return encode(body)
        refuse_foreign(body)
        packed: bytes = msgpack.packb(body)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError) as error:
        raise Malformed(f"not a message body: {error}") from None
    return packed


def pack_error(error: SagacityError) -> bytes:
    """Pack an error's body."""
    return _packed_error(tuple(error.body().items()))


@lru_cache(ERRORS_KEPT)
def _packed_error(members: tuple[tuple[str, object], ...]) -> bytes:
    return pack(dict(members))


def refuse_foreign(value: Any, depth: int = DEPTH_MAX) -> None:
    """Refuse floats and bytes anywhere in a value, keys that are no text, more than `depth` levels.

    Raises:
        TypeError, ValueError: saying which.
    """
    if type(value) is str or type(value) is int:
        return  # most are
    if isinstance(value, float):
        raise TypeError("a number is an integer; money counts minor units")
    if isinstance(value, bytes):  # which JSON has not: no front-end could write them
        raise TypeError("a text is no bytes")
    if depth == 0 and isinstance(value, dict | list | tuple):
        raise ValueError(f"more than {DEPTH_MAX} levels")
    if isinstance(value, dict):
        for key, member in value.items():
            if not isinstance(key, str):
                raise TypeError("a key is a text")
            refuse_foreign(member, depth - 1)
    elif isinstance(value, list | tuple):
        for member in value:
            refuse_foreign(member, depth - 1)


def unpack(body: bytes) -> dict[str, Any]:
    """Unpack a body of unknown shape, strictly.

    Raises:
        Malformed: no map, over a limit, duplicate keys, floats, extension types, bytes left over.
    """
    if len(body) > BODY_BYTES_MAX:
        raise Malformed(f"a body has at most {BODY_BYTES_MAX} bytes")
    unpacker = msgpack.Unpacker(
        None,
        raw=False,
        strict_map_key=True,
        object_pairs_hook=_unique,
        ext_hook=_no_ext,
        timestamp=0,
        max_buffer_size=BODY_BYTES_MAX,
        max_str_len=BODY_BYTES_MAX,
        max_bin_len=BODY_BYTES_MAX,
        max_array_len=CONTAINER_MAX,
        max_map_len=CONTAINER_MAX,
        max_ext_len=0,
    )
    try:
        unpacker.feed(body)
        value = unpacker.unpack()
        if unpacker.tell() != len(body):
            raise ValueError("bytes left over")
        refuse_foreign(value)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise Malformed(f"unreadable body: {error}") from None
    if not isinstance(value, dict):
        raise Malformed("a body is a map")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate keys")
    return found


def _no_ext(code: int, _: bytes) -> Any:
    raise ValueError(f"extension type {code}")


class BodyReader(Generic[T]):
    """Reads bodies of one type that come from outside.

    `read` gives the value and its canonical bytes: two bodies with the same content have the same
    canonical bytes. A body that is canonical already costs one decode and one encode; only another
    one is unpacked strictly (duplicate keys, floats), since msgspec takes both silently.
    """

    def __init__(self, kind: Any) -> None:
        self.decode: Callable[[bytes], T] = msgspec.msgpack.Decoder(kind).decode
        config = getattr(kind, "__struct_config__", None)
        self._tag_field: str | None = config and config.tag_field

    def read(self, body: bytes) -> tuple[T, bytes]:
        """Read a body.

        Raises:
            Malformed: it does not have the shape, or is over a limit.
        """
        if len(body) > BODY_BYTES_MAX:
            raise Malformed(f"a body has at most {BODY_BYTES_MAX} bytes")
        try:
            value = self.decode(body)
            canonical = encode(value)
            if canonical != body:
                found = unpack(body)
                # Of a single kind msgspec asks no tag.
                if self._tag_field is not None and self._tag_field not in found:
                    raise Malformed(f"Object missing required field `{self._tag_field}`")
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError) as error:
            raise Malformed(str(error)) from None
        return value, canonical
