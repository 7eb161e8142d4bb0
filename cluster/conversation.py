"""A Maelstrom node's side of the conversation: lines in, lines out, asks. Pure.

Knows neither stdin nor a cluster, and needs nothing that is slow to import until a saga is asked
for: `init` is answered within a blink (SPEC 5).
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeGuard

from sagacity.errors import InternalError, Malformed, NotSupported, SagacityError

if TYPE_CHECKING:
    from cluster.requests import Asked

LINE_BYTES_MAX = 1 << 20  # a longer line is logged and skipped
TEXT_MAX = 300  # characters of an error's text; it may quote what the client sent
_MSG_ID_MIN, _MSG_ID_MAX = -(2**63), 2**63 - 1
_ASKED = frozenset({"checkout", "cancel"})

Log = Callable[..., None]


class _UnreadableLine(Exception):
    """A line that nobody can be answered about."""


class Ask(NamedTuple):
    """A request for the cluster; its answer comes back under `token`."""

    token: int
    asked: "Asked"


class Lines:
    """Cuts what is read into lines. A line that is too long is never held whole."""

    def __init__(self, limit: int = LINE_BYTES_MAX) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._length = 0
        self.dropped = 0  # lines that were too long

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take what was read; give the lines that it ends, without their newlines."""
        *ended, rest = chunk.split(b"\n")
        found = []
        for part in ended:
            self._add(part)
            found += self.end()
        self._add(rest)
        return found

    def end(self) -> list[bytes]:
        """End the line that was begun: give it, unless there is nothing or it was too long."""
        line = b"".join(self._parts)
        if self._length > self._limit:
            self.dropped += 1
        self._parts, self._length = [], 0
        return [line] if line else []

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        if self._length > self._limit:
            self._parts = []
        elif part:
            self._parts.append(part)


class Session:
    """One node's conversation with all its clients.

    `take` a line: it gives a line to write, an Ask for the cluster, or nothing. What the cluster
    answers goes to `answered`. Each line out ends with a newline.

    Args:
        log: told of each line that is skipped, as log(event, **fields).
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._id: str | None = None
        self._msg_id = 0
        self._tokens = 0
        self._open: dict[int, tuple[str, str, int | None]] = {}  # token: from, to, msg_id
        self._answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "init": lambda _: {"type": "init_ok"},
            "echo": lambda body: {"type": "echo_ok", **_only(body, "echo")},
            "topology": lambda _: {"type": "topology_ok"},
        }

    @property
    def open(self) -> list[int]:
        """Tokens of the asks that are not answered."""
        return list(self._open)

    @property
    def asking(self) -> int:
        """How many asks are not answered."""
        return len(self._open)

    def take(self, line: bytes) -> bytes | Ask | None:
        """Take a line of input, without its newline."""
        if not line.strip():
            return None
        try:
            body, client, node, doubled = self._read(line)
        except _UnreadableLine as error:
            self._log("line_skipped", reason=_clean(str(error)))
            return None
        msg_id = _msg_id(body)
        try:
            if doubled is not None:
                raise Malformed(f"duplicate key: {doubled}")
            return self._handle(body, client, node, msg_id)
        except SagacityError as error:
            return self._line(self._id or node, client, msg_id, error.body())

    def answered(self, token: int, body: Mapping[str, Any]) -> bytes | None:
        """Give the line for the answer to an ask; None when it was answered before."""
        route = self._open.pop(token, None)
        if route is None:
            return None
        node, client, msg_id = route
        return self._line(node, client, msg_id, body)

    def _handle(self, body: Any, client: str, node: str, msg_id: int | None) -> bytes | Ask | None:
        if not isinstance(body, dict):
            raise Malformed("body: an object is expected")
        kind = body.get("type")
        if not isinstance(kind, str):
            raise Malformed("body: type is missing, or is no text")
        if kind == "error":  # the answer to what nobody asked: answered, two nodes would never stop
            self._log("line_skipped", reason="an error that answers nothing")
            return None
        if msg_id is None and "msg_id" in body:
            raise Malformed("msg_id: an integer of 64 bits is expected")
        if kind in _ASKED:
            return self._ask(kind, body, client, node, msg_id)
        if kind not in self._answers:
            raise NotSupported(f"type not supported: {kind}")
        if kind == "init":
            self._id = _node_id(body, node)
        return self._line(self._id or node, client, msg_id, self._answers[kind](body))

    def _ask(
        self, kind: str, body: dict[str, Any], client: str, node: str, msg_id: int | None
    ) -> Ask:
        from cluster.requests import MAKERS  # noqa: PLC0415 - init must not wait for its imports

        asked = MAKERS[kind](body)
        self._tokens += 1
        self._open[self._tokens] = (self._id or node, client, msg_id)
        return Ask(self._tokens, asked)

    def _read(self, line: bytes) -> tuple[Any, str, str, str | None]:
        """Give body, sender, receiver, and a key that is there twice."""
        doubled: list[str] = []

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                doubled.append(_first_doubled(pairs))
            return found

        try:
            message = json.loads(
                line.decode(), object_pairs_hook=unique, parse_constant=_no_constant
            )
        except (ValueError, RecursionError) as error:
            raise _UnreadableLine(f"no JSON: {error}") from None
        if not isinstance(message, dict) or "body" not in message:
            raise _UnreadableLine("no JSON object with a body")
        client, node = message.get("src"), message.get("dest", self._id)
        if not _is_text(client) or not _is_text(node):
            raise _UnreadableLine("src or dest is missing, or is no text")
        return message["body"], client, node, doubled[0] if doubled else None

    def _line(self, node: str, client: str, msg_id: int | None, body: Mapping[str, Any]) -> bytes:
        full: dict[str, Any] = {"type": body["type"]}
        if msg_id is not None:
            full["in_reply_to"] = msg_id
        full["msg_id"] = self._msg_id
        full |= {key: value for key, value in body.items() if key != "type"}
        if body["type"] == "error":
            full["text"] = _clean(str(body.get("text", "")))
        try:
            text = json.dumps(
                {"src": node, "dest": client, "body": full}, ensure_ascii=False, allow_nan=False
            )
            line = text.encode() + b"\n"
        except (ValueError, RecursionError) as error:  # an echo of what JSON cannot say
            if body["type"] == "error":
                raise InternalError(f"an error that cannot be written: {error}") from None
            raise Malformed(f"body: {error}") from None
        self._msg_id += 1
        return line


def _first_doubled(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            break
        seen.add(key)
    return key


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _msg_id(body: Any) -> int | None:
    """Give the msg_id of a body where it has one as it should be."""
    msg_id = body.get("msg_id") if isinstance(body, dict) else None
    if type(msg_id) is int and _MSG_ID_MIN <= msg_id <= _MSG_ID_MAX:
        return msg_id
    return None


def _node_id(body: dict[str, Any], otherwise: str) -> str:
    node_id = body.get("node_id", otherwise)
    if not _is_text(node_id):
        raise Malformed("node_id: a text is expected")
    return node_id


def _only(body: dict[str, Any], key: str) -> dict[str, Any]:
    return {key: body[key]} if key in body else {}


def _is_text(value: Any) -> TypeGuard[str]:
    """Say whether a value is a text that can be written: surrogates cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clean(text: str) -> str:
    """Give an error's text as one that can be written, and not for ever."""
    return text.encode("utf-8", "backslashreplace").decode()[:TEXT_MAX]
