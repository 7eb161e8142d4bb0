"""The client's record: JSON lines of what was sent, heard, planned, struck and measured. Pure.

Whoever drives a cluster writes one (`Recorder`), a file each client; `docs/checker.md` is its
format for people. A record that does not end with its last line is truncated, and refused.
"""

from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from sagacity import wire
from sagacity.checker.bodies import said
from sagacity.errors import Malformed, SagacityError
from sagacity.messages import Checkout, merge

FORMAT: Final = 1
STARTS: Final = ("start", "submit")  # kinds of request that may start a saga


class Begin(Struct, tag="record", forbid_unknown_fields=True):
    """The first line: who wrote it, of which cluster ("" where that is not known)."""

    format: int
    client: str
    cluster_id: str = ""


class Sent(Struct, tag="sent", forbid_unknown_fields=True):
    """A request left; `kind` as in wire.KINDS. A body that is left out is that id's first one."""

    at_ms: int
    request: int
    kind: str
    saga_id: str
    body: dict[str, Any] | None = None


class Heard(Struct, tag="answer", forbid_unknown_fields=True):
    """A request was answered: `code` is null for an answer, else that of an error."""

    at_ms: int
    request: int
    code: int | None
    body: dict[str, Any]


class Planned(Struct, tag="planned", forbid_unknown_fields=True):
    """A fault is to happen; `fault` is its name, the same in the line that says that it did."""

    at_ms: int
    fault: str


class Struck(Struct, tag="struck", forbid_unknown_fields=True):
    """A fault was seen to happen: `hit` processes, frames or bytes; sagas that it may leave stuck.

    `stuck`: ids of sagas, or names of services whose compensations it keeps from succeeding.
    """

    at_ms: int
    fault: str
    hit: int
    stuck: list[str] = []


class Quiet(Struct, tag="quiet", forbid_unknown_fields=True):
    """From here on no fault is caused, and whoever writes this waits for every saga's end."""

    at_ms: int


class Metrics(Struct, tag="metrics", forbid_unknown_fields=True):
    """What a process served as /metrics, each name summed over its labels."""

    at_ms: int
    process: str  # such as shard-0
    pid: int
    values: dict[str, int | float]


class Usage(Struct, tag="usage", forbid_unknown_fields=True):
    """What a process takes of the machine."""

    at_ms: int
    process: str
    pid: int
    memory_bytes: int
    files: int
    threads: int


class Catalog(Struct, tag="catalog", forbid_unknown_fields=True):
    """What the cluster began with: prices and stock by SKU, balances by user."""

    prices: dict[str, int]
    stock: dict[str, int]
    accounts: dict[str, int]


class End(Struct, tag="end", forbid_unknown_fields=True):
    """The last line: how many there are, this one counted."""

    lines: int


Line = Begin | Sent | Heard | Planned | Struck | Quiet | Metrics | Usage | Catalog | End

_KINDS: Final = frozenset(wire.KINDS.values())
_CHECKOUT: Final = str(Checkout.__struct_config__.tag)
_read = msgspec.json.Decoder(Line).decode
_write = msgspec.json.Encoder().encode


class Heeded(Struct, gc=False):
    """An answer, and its place among its client's lines."""

    at: int
    code: int | None
    body: bytes  # packed, without in_reply_to

    def said(self) -> dict[str, Any]:
        """Give its body; nothing where it cannot be read."""
        return said(self.body)


class Ask(Struct):
    """A request, and what came of it.

    Args:
        client: who asked.
        kind: such as "start".
        saga_id: of which saga.
        at: its place among its client's lines.
        fingerprint: of what is asked for, 16 bytes; None where that cannot be told.
        answers: in order.
        request_type: of a start's body, such as "checkout"; "" where that cannot be told.
    """

    client: str
    kind: str
    saga_id: str
    at: int
    fingerprint: bytes | None
    answers: list[Heeded] = field(default_factory=list)
    request_type: str = ""


class ClientRecord(Struct):
    """What all records of a cluster say together.

    Args:
        clients: who wrote them.
        clusters: cluster ids that they name.
        asks: of all clients, those of one in order.
        planned: faults.
        struck: likewise.
        quiet: somebody stopped causing faults and waited for the end.
        metrics: in order.
        usage: in order.
        catalog: None where nobody wrote it.
    """

    clients: list[str] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
    struck: list[Struck] = field(default_factory=list)
    quiet: bool = False
    metrics: list[Metrics] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    catalog: Catalog | None = None


def read(name: str, lines: Iterable[bytes], into: ClientRecord) -> ClientRecord:
    """Read a record to its end.

    Args:
        name: of the file, for people.
        lines: JSON, each with or without its newline.
        into: takes what it says.

    Raises:
        Malformed: it is no record, of another version, damaged, or truncated.
    """
    reader = _Reader(name, into)
    for line in lines:
        reader.take(line)
    reader.end()
    return into


class _Reader:
    def __init__(self, name: str, into: ClientRecord) -> None:
        self._name = name
        self._into = into
        self._lines = 0
        self._client = ""
        self._ended = False
        self._open: dict[int, Ask] = {}
        self._first: dict[str, bytes | None] = {}  # saga_id -> fingerprint of its first body

    def take(self, line: bytes) -> None:
        """Take in the next line."""
        self._lines += 1
        if self._ended:
            raise self._refused("there are lines after its last one")
        if self._lines == 1:
            self._begin(line)
            return
        try:
            said = _read(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            cut = "" if line.endswith(b"\n") else "; it may be truncated"
            raise self._refused(f"line {self._lines} is none of a record: {error}{cut}") from None
        try:
            self._say(said)
        except SagacityError as error:
            raise self._refused(f"line {self._lines}: {error.text}") from None

    def _begin(self, line: bytes) -> None:
        try:
            kind = msgspec.json.decode(line, type=_Kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            kind = _Kind()
        if kind.type != "record":
            raise self._refused("it is no client's record: its first line does not say so")
        if kind.format != FORMAT:
            raise self._refused(f"it has format {kind.format}; this version reads {FORMAT}")
        try:
            said = msgspec.json.decode(line, type=Begin)
        except msgspec.DecodeError as error:
            raise self._refused(f"line 1 is none of a record: {error}") from None
        self._client = said.client
        if said.client in self._into.clients:
            raise self._refused(f"client {said.client!r} has another record")
        self._into.clients.append(said.client)
        if said.cluster_id:
            self._into.clusters.append(said.cluster_id)

    def _say(self, said: Line) -> None:
        into = self._into
        if isinstance(said, Sent):
            self._sent(said)
        elif isinstance(said, Heard):
            ask = self._open.get(said.request)
            if ask is None:
                raise Malformed(f"request {said.request} is answered and was not sent")
            ask.answers.append(Heeded(self._lines, said.code, wire.pack(_plain(said.body))))
        elif isinstance(said, Planned):
            into.planned.append(said)
        elif isinstance(said, Struck):
            into.struck.append(said)
        elif isinstance(said, Quiet):
            into.quiet = True
        elif isinstance(said, Metrics):
            into.metrics.append(said)
        elif isinstance(said, Usage):
            into.usage.append(said)
        elif isinstance(said, Catalog):
            into.catalog = said
        elif isinstance(said, End):
            if said.lines != self._lines:
                raise Malformed(f"it is truncated: {said.lines} lines were written")
            self._ended = True
        else:
            raise Malformed("a record begins once")

    def _sent(self, said: Sent) -> None:
        if said.kind not in _KINDS:
            raise Malformed(f"there is no kind of request {said.kind!r}")
        if said.request in self._open:
            raise Malformed(f"request {said.request} is sent twice")
        if said.body is None and said.kind in STARTS:
            if said.saga_id not in self._first:
                raise Malformed(f"no earlier line has the body of {said.saga_id}")
            fingerprint = self._first[said.saga_id]
        else:
            fingerprint = fingerprint_of(said.body or {}) if said.kind in STARTS else None
            if said.kind in STARTS:
                self._first.setdefault(said.saga_id, fingerprint)
        ask = Ask(self._client, said.kind, said.saga_id, self._lines, fingerprint)
        ask.request_type = _CHECKOUT if fingerprint is not None else ""
        self._open[said.request] = ask
        self._into.asks.append(ask)

    def end(self) -> None:
        """The file is at its end."""
        if not self._lines:
            raise self._refused("it is empty: truncated, or no client's record")
        if not self._ended:
            raise self._refused("it is truncated: its last line is missing")

    def _refused(self, text: str) -> Malformed:
        return Malformed(f"{self._name}: {text}")


class _Kind(Struct):
    type: str = ""
    format: int = 0


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "in_reply_to"}


def plain(body: bytes) -> bytes:
    """Give a packed answer without in_reply_to, which tells requests of one id apart."""
    return wire.pack(_plain(said(body))) if b"in_reply_to" in body else body


def fingerprint_of(body: Mapping[str, Any]) -> bytes | None:
    """Give the fingerprint of a request to check out (SPEC 2); None for any other body."""
    try:
        asked = msgspec.convert(dict(body), Checkout)
        return blake2b(wire.encode(merge(asked)), digest_size=16).digest()
    except (msgspec.ValidationError, Malformed):
        return None


class Recorder:
    """Writes a record, a line at a time; `end` writes the last one.

    Args:
        write: takes each line, with its newline.
        client: a name that no other record of this cluster has.
        now_ms: gives the time.
        cluster_id: of the cluster, where it is known.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        client: str,
        now_ms: Callable[[], int],
        cluster_id: str = "",
    ) -> None:
        self._write = write
        self._now_ms = now_ms
        self._lines = 0
        self._bodies: dict[str, bytes] = {}
        self.line(Begin(FORMAT, client, cluster_id))

    def line(self, said: Line) -> None:
        """Write a line."""
        self._lines += 1
        self._write(_write(said) + b"\n")

    def sent(self, request: int, kind: int, saga_id: str, body: bytes = b"") -> None:
        """A request leaves; `body` is packed, and written where it is not that id's first one."""
        name = wire.KINDS[kind]
        told: dict[str, Any] | None = None
        if name not in STARTS:
            told = wire.unpack(body) if body else {}
        elif self._bodies.get(saga_id) != body:
            told = wire.unpack(body)
            self._bodies.setdefault(saga_id, body)
        self.line(Sent(self._now_ms(), request, name, saga_id, told))

    def heard(self, request: int, code: int | None, body: bytes) -> None:
        """A request was answered."""
        self.line(Heard(self._now_ms(), request, code, wire.unpack(body)))

    def planned(self, fault: str) -> None:
        """A fault is to happen."""
        self.line(Planned(self._now_ms(), fault))

    def struck(self, fault: str, hit: int, stuck: Iterable[str] = ()) -> None:
        """A fault was seen to happen."""
        self.line(Struck(self._now_ms(), fault, hit, list(stuck)))

    def quiet(self) -> None:
        """No fault is caused from here on."""
        self.line(Quiet(self._now_ms()))

    def metrics(self, process: str, pid: int, values: Mapping[str, float]) -> None:
        """A process was scraped."""
        self.line(Metrics(self._now_ms(), process, pid, dict(values)))

    def usage(self, process: str, pid: int, memory_bytes: int, files: int, threads: int) -> None:
        """A process was measured."""
        self.line(Usage(self._now_ms(), process, pid, memory_bytes, files, threads))

    def end(self) -> None:
        """Write the last line."""
        self.line(End(self._lines + 1))
