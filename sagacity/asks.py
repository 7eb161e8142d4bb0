"""Asks: which requests are open, when each is asked again, what is reported in the end (SPEC 4).

No socket and no clock: instants come in as monotonic nanoseconds. One request has one number for
all its tries, so a router knows a second try from a second request, and the first reply that
settles it is the only one reported; late and double ones are dropped.

    asked -> answer, or code 10 12 13 20 22        reported
          -> code 0 of a saga that is stuck        reported: to wait helps nobody
          -> nothing for 1 s, 2 s, 4 s, 5 s ...    asked again
          -> a new connection                      asked again at once
          -> code 0 (its shard went away)          asked again when its time comes
          -> code 11 (not taken)                   asked again after retry_after_ms, then doubling
          -> its wait is over                      11 if every try was answered 11, else 0
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from sagacity import wire
from sagacity.errors import (
    InternalError,
    Malformed,
    NoOutcome,
    NotTaken,
    SagacityError,
    Stuck,
    from_body,
)
from sagacity.wire import Headers, Reply, Request

MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000

WAIT_S: Final = 35.0  # the saga's deadline and a little
AGAIN_NS: Final = 1 * SECOND
AGAIN_MAX_NS: Final = 5 * SECOND
REFUSED_AGAIN_MS: Final = 250  # where a code 11 does not say
STARTS_MAX: Final = 1_024  # that a router takes of one client (its default): it refuses more
SAGA_ID_BYTES_MAX: Final = 128
IDS_KEPT_MAX: Final = 65_536  # ids that may have been started, of which no outcome was seen

_TICK_NS: Final = 8 * MILLISECOND  # of the timer wheel: how late a time may be noticed
_NO_HEADERS: Final[Headers] = {}
_STARTS: Final = frozenset({wire.START, wire.SUBMIT})
_NONE: Final[frozenset[str]] = frozenset()


class _Refused(Struct):
    """The one key of a refusal that is acted on."""

    retry_after_ms: int = REFUSED_AGAIN_MS


_refused = wire.decoder(_Refused)


class _Open:
    """One request that is not settled."""

    __slots__ = ("again_ns", "at", "deadline", "last", "refusals", "request", "shaken", "tries")

    def __init__(self, request: Request, at: int, deadline: int) -> None:
        self.request = request
        self.at = at  # when it is asked again, or given up
        self.deadline = deadline
        self.again_ns = AGAIN_NS
        self.tries = 0
        self.refusals = 0  # tries that were answered 11
        self.shaken = False  # some try was answered 0
        self.last: Reply | None = None  # of code 0 if there was one, else of code 11


class Asks:
    """The open requests of one connection.

    Args:
        to: who is asked, for messages to people.
        starts_max: starts that are asked and not settled; more are held back, in their order, until
            others are settled. None: all are asked at once.
        again_when_refused: else a first try that is answered 11 settles its request.
    """

    def __init__(
        self, to: str, *, starts_max: int | None = None, again_when_refused: bool = True
    ) -> None:
        self._to = to
        self._starts_max = starts_max
        self._again_when_refused = again_when_refused
        self._starts = 0  # open and not held back, where that is bounded
        self._held: dict[int, _Open] = {}
        self._open: dict[int, _Open] = {}
        self._fresh: dict[int, _Open] = {}  # to be sent with the next frame
        self._settled: list[tuple[int, Reply]] = []
        self._wheel: dict[int, list[int]] = {}  # tick -> tokens, some of them settled meanwhile
        self._first_tick = 0  # none is earlier; 0 when the wheel is empty
        self._maybe_started: dict[str, None] = {}
        # How many open starts each id has; counted from the first one on that is given up: 0.25 us
        # an ask, which most connections never pay.
        self._ids: Counter[str] | None = None
        self._tokens = 0
        self.late = 0  # replies to nothing that is open, since the start

    def __len__(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        """How many requests are to be sent with the next frame."""
        return len(self._fresh)

    def ask(
        self,
        kind: int,
        saga_id: str,
        body: bytes,
        *,
        now: int,
        wait_ns: int,
        headers: Headers = _NO_HEADERS,
    ) -> int:
        """Open a request.

        Args:
            kind: one of wire.KINDS.
            saga_id: of the saga, or a cluster kind's target.
            body: packed.
            now: monotonic, in nanoseconds.
            wait_ns: after this it is given up.
            headers: for the envelope.

        Returns:
            A token by which `on_reply` and `settled` name it.

        Raises:
            Malformed: it cannot travel, and would take those in its frame with it.
        """
        if not saga_id.isascii() or len(saga_id) > SAGA_ID_BYTES_MAX:
            raise Malformed(f"a saga_id is 1 to {SAGA_ID_BYTES_MAX} of A-Z a-z 0-9 . _ : -")
        if len(body) > wire.BODY_BYTES_MAX:
            raise Malformed(f"a body has at most {wire.BODY_BYTES_MAX} bytes")
        if headers:
            _check_headers(headers)
        self._tokens = token = self._tokens + 1
        deadline = now + wait_ns
        at = min(now + AGAIN_NS, deadline)
        opened = _Open(Request(kind, saga_id, token, headers, body), at, deadline)
        self._open[token] = opened
        self._arm(token, at)
        if self._ids is not None and kind in _STARTS:
            self._ids[saga_id] += 1
        if self._starts_max is None or kind not in _STARTS:
            self._fresh[token] = opened
        else:
            self._held[token] = opened
            self._release()
        return token

    def forget(self, token: int) -> None:
        """Close a request whose asker has gone away; its reply will be a late one."""
        opened = self._open.get(token)
        if opened is not None:
            self._close(token)
            if opened.tries:
                self._remember(opened.request)

    def take(self) -> list[Request]:
        """Give what is to be sent now, and count it as tried."""
        requests = []
        for opened in self._fresh.values():
            opened.tries += 1
            requests.append(opened.request)
        self._fresh.clear()
        return requests

    def untake(self, requests: Sequence[Request]) -> None:
        """Take back what could not be sent: it was no try."""
        for request in requests:
            opened = self._open[request.request]
            opened.tries -= 1
            self._fresh[request.request] = opened

    def on_connected(self, now: int) -> None:
        """Ask everything open again at once: a new connection's peer knows none of it."""
        for token, opened in self._open.items():
            opened.again_ns = AGAIN_NS
            self._move(token, opened, now + AGAIN_NS)
        self._fresh = {token: each for token, each in self._open.items() if token not in self._held}

    def on_reply(self, reply: Reply, now: int) -> tuple[int, Reply] | None:
        """Take a reply.

        Returns:
            Token and reply if that settles the request; None if it goes on, or is none of ours.
        """
        token = reply.request
        opened = self._open.get(token)
        if opened is None:
            self.late += 1
            return None
        stuck = reply.code == NoOutcome.code and _is_stuck(reply.body)
        final = reply.code == NotTaken.code and opened.tries == 1 and not self._again_when_refused
        if reply.code in {NotTaken.code, NoOutcome.code} and not stuck and not final:
            self._on_unsettled(token, opened, reply, now)
            return None
        self._close(token)
        kind = opened.request.kind
        if reply.code is None and kind == wire.START:
            if self._maybe_started:
                self._maybe_started.pop(opened.request.saga_id, None)
        elif stuck or (reply.code, kind) == (None, wire.SUBMIT) or reply.code == InternalError.code:
            self._remember(opened.request)
        return token, reply

    def due(self, now: int) -> None:
        """Let time pass: what waited long enough is asked again, or given up."""
        tick = now // _TICK_NS
        if not self._first_tick or tick < self._first_tick:
            return
        unsure: frozenset[str] | None = None
        for due in sorted(known for known in self._wheel if known <= tick):
            for token in self._wheel.pop(due):
                opened = self._open.get(token)
                if opened is None or opened.at > now:
                    continue
                if opened.deadline <= now:
                    if unsure is None and self._is_open_twice(opened.request.saga_id):
                        unsure = self._unsure()  # looks at all that is open
                    self._give_up(token, opened, unsure or _NONE)
                    continue
                if token in self._held:
                    self._move(token, opened, now + AGAIN_NS)
                    continue
                self._fresh[token] = opened
                self._move(token, opened, now + opened.again_ns)
                opened.again_ns = min(2 * opened.again_ns, AGAIN_MAX_NS)
        self._first_tick = min(self._wheel, default=0)

    def settled(self) -> list[tuple[int, Reply]]:
        """Give, once, what `due` gave up: tokens with a reply of code 11 or 0."""
        settled, self._settled = self._settled, []
        return settled

    def next_due(self) -> int | None:
        """Give the instant at which `due` should be called next, None if never."""
        return self._first_tick * _TICK_NS if self._first_tick else None

    def _on_unsettled(self, token: int, opened: _Open, reply: Reply, now: int) -> None:
        if reply.code == NoOutcome.code or not opened.shaken:
            opened.last = reply
        opened.shaken = opened.shaken or reply.code == NoOutcome.code
        if reply.code == NotTaken.code:
            # Doubling: who refuses for load is helped by fewer questions, not by more.
            pause_ms = retry_after_ms(reply.body) << min(opened.refusals, 16)
            opened.refusals += 1
            opened.again_ns = AGAIN_NS
            self._move(token, opened, now + min(pause_ms * MILLISECOND, AGAIN_MAX_NS))

    def _give_up(self, token: int, opened: _Open, unsure: frozenset[str]) -> None:
        request = opened.request
        maybe = opened.shaken or opened.tries > opened.refusals
        if request.kind in _STARTS:
            maybe = maybe or request.saga_id in unsure or request.saga_id in self._maybe_started
        if not maybe:
            held = f"{self._starts_max} others that were asked first have no outcome yet"
            why = held if token in self._held else f"no connection to {self._to}"
            told = opened.last or _reply(token, NotTaken(why))
        elif opened.shaken and opened.last is not None:
            told = opened.last
        else:
            told = _reply(token, NoOutcome("no answer in time; ask again with the same id"))
        self._settled.append((token, told))
        self._close(token)
        if maybe:
            self._remember(request)

    def _close(self, token: int) -> None:
        opened = self._open.pop(token)
        if self._fresh:
            self._fresh.pop(token, None)
        if opened.request.kind not in _STARTS:
            return
        if self._ids is not None:
            saga_id = opened.request.saga_id
            self._ids[saga_id] -= 1
            if not self._ids[saga_id]:
                del self._ids[saga_id]
        if self._starts_max is not None and self._held.pop(token, None) is None:
            self._starts -= 1
            self._release()

    def _release(self) -> None:
        """Ask what was held back first, as far as there is room."""
        while self._held and self._starts < (self._starts_max or 0):
            token = next(iter(self._held))
            self._fresh[token] = self._held.pop(token)
            self._starts += 1

    def _remember(self, request: Request) -> None:
        if request.kind in _STARTS:
            self._maybe_started[request.saga_id] = None
            if len(self._maybe_started) > IDS_KEPT_MAX:
                del self._maybe_started[next(iter(self._maybe_started))]

    def _is_open_twice(self, saga_id: str) -> bool:
        if self._ids is None:
            requests = (opened.request for opened in self._open.values())
            self._ids = Counter(each.saga_id for each in requests if each.kind in _STARTS)
        return self._ids[saga_id] > 1

    def _unsure(self) -> frozenset[str]:
        """Give the ids of open starts of which some try was not answered 11."""
        return frozenset(
            opened.request.saga_id
            for opened in self._open.values()
            if opened.tries > opened.refusals and opened.request.kind in _STARTS
        )

    def _move(self, token: int, opened: _Open, at: int) -> None:
        opened.at = min(at, opened.deadline)
        self._arm(token, opened.at)

    def _arm(self, token: int, at: int) -> None:
        # A wheel, not a heap: 0.2 us against 1, and nearly every ask is settled before its time.
        tick = -(-at // _TICK_NS)
        tokens = self._wheel.get(tick)
        if tokens is None:
            self._wheel[tick] = [token]
            if not self._first_tick or tick < self._first_tick:
                self._first_tick = tick
        else:
            tokens.append(token)


def _check_headers(headers: Headers) -> None:
    try:
        if wire.headers_fit(headers):
            wire.encode(headers)
            return
    except UnicodeEncodeError as error:
        raise Malformed(f"headers: {error}") from None
    raise Malformed(f"headers have at most {wire.HEADERS_BYTES_MAX} bytes")


def retry_after_ms(body: bytes) -> int:
    """Give when to ask again, as a refusal says it."""
    try:
        told: int = _refused(body).retry_after_ms
    except (ValueError, RecursionError):
        return REFUSED_AGAIN_MS
    return told if told > 0 else REFUSED_AGAIN_MS


def _is_stuck(body: bytes) -> bool:
    try:
        return isinstance(from_body(wire.unpack(body)), Stuck)
    except Malformed:
        return False


def _reply(token: int, error: SagacityError) -> Reply:
    return Reply(token, error.code, wire.pack_error(error))
