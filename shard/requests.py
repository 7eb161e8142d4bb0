"""Requests: what clients ask of a shard: start, repeat, cancel, retry, show, books, list. Pure."""

from typing import Any

from msgspec import UNSET, Struct

from sagacity import traces, wire
from sagacity.errors import (
    Conflict,
    InternalError,
    Malformed,
    NoOutcome,
    NotSupported,
    NotTaken,
    SagacityError,
    UnknownSaga,
)
from sagacity.ids import check_saga_id, number_of
from sagacity.messages import Cancel, RetryNow, check_text
from sagacity.saga import Unstartable
from sagacity.slots import slot_of
from sagacity.wire import BodyReader, Request
from shard import phases
from shard.admission import FULL_RETRY_AFTER_MS, retry_after_ms
from shard.books import Books
from shard.course import Course, told_of, writable
from shard.effects import Effects, HistoryAsked
from shard.entries import CANCELLED, UNPRICED, RetryAsked, Started
from shard.events import Instant, Peer
from shard.listing import page_of
from shard.replies import answer, refuse
from shard.sagas import Card, Definition, Live, Tombstone, Waiter

AMOUNT_MAX = (1 << 63) - 1  # minor units
DECODED_MAX = 2_048  # sagas whose order is kept decoded, 5 MB; more of them are kept as bytes
WAITERS_MAX = 64  # requests that wait for one saga; the oldest are told to ask again


class _Typed(Struct):
    """The one key that says which definition a body starts."""

    type: str


class _Numbered(Struct):
    """The one key that a refused body's asker may know it by."""

    msg_id: int | None = None


_STARTS = frozenset((wire.START, wire.SUBMIT))
_type_of = wire.decoder(_Typed)
_number_of = wire.decoder(_Numbered)
_cancel: BodyReader[Cancel] = BodyReader(Cancel)
_retry: BodyReader[RetryNow] = BodyReader(RetryNow)


class Desk:
    """Takes requests, and asks the course for what follows."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._state = course.state
        self._by_type = {
            definition.saga.request_type: definition
            for definition in course.state.definitions.values()
        }
        self._books = Books(course)
        self._only = next(iter(self._by_type.values())) if len(self._by_type) == 1 else None

    def take(self, origin: Peer, request: Request, now: Instant, fx: Effects) -> None:
        """Take one request; every one gets exactly one reply, now or when its saga is final."""
        kind = request.kind
        try:
            if kind in _STARTS:
                self._admit(origin, request, now, fx)
            elif kind == wire.RECALL:
                self._recall(origin, request, now, fx)
            elif kind == wire.CANCEL:
                self._cancel(origin, request, now, fx)
            elif kind == wire.SHOW:
                fx.histories.append(
                    HistoryAsked(origin, request.request, self._find(request.saga_id))
                )
            elif kind == wire.BOOKS:
                self._books.take(origin, request, fx)
            elif kind == wire.LIST:
                page = page_of(self._course.state, self._course.shard, request.body)
                fx.reply(origin, wire.Reply(request.request, None, page))
            elif kind == wire.RETRY:
                self._retry(origin, request, now, fx)
            else:
                raise NotSupported(f"a shard knows no request of kind {kind}")
        except SagacityError as error:
            self.refuse(origin, request, error, fx)

    def refuse(self, origin: Peer, request: Request, error: SagacityError, fx: Effects) -> None:
        """Refuse a request, whatever it is."""
        self._refuse(fx, Waiter(origin, request.request, _msg_id(request.body)), error)

    def _refuse(self, fx: Effects, waiter: Waiter, error: SagacityError) -> None:
        self._course.tally.refused(error.cause)
        refuse(fx, waiter, error)

    def knows(self, request: Request) -> bool:
        """Say whether a request is about a saga that is here, or about none."""
        if request.kind in (wire.BOOKS, wire.LIST):
            return True
        saga_id = request.saga_id
        return saga_id in self._state.by_id or self._state.finished.find(saga_id) is not None

    # -- starts ---------------------------------------------------------------------------------

    def _admit(self, origin: Peer, request: Request, now: Instant, fx: Effects) -> None:
        """Take a start, unless there is no room and its id is new.

        That is seen before its body is read: under overload most starts are refused, and what they
        cost is taken from those that are not.
        """
        definition, course = self._only or self._definition(request.body), self._course
        refusal = course.admission.refusal(len(self._state.live), course.wait_ms(definition))
        if refusal is None or self.knows(request):
            self._start(origin, request, now, fx)
        else:
            self.refuse(origin, request, refusal, fx)

    def _start(self, origin: Peer, request: Request, now: Instant, fx: Effects) -> None:
        definition = self._only or self._definition(request.body)
        try:
            asked, canonical = definition.readers.request.read(request.body)
        except Malformed:
            self._definition(request.body)  # a type that starts nothing is told so first
            raise
        msg_id = getattr(asked, "msg_id", UNSET)
        waiter = Waiter(origin, request.request, None if msg_id is UNSET else msg_id)
        try:
            if request.headers and not wire.headers_fit(request.headers):
                raise Malformed(f"headers have at most {wire.HEADERS_BYTES_MAX} bytes")
            saga_id: str = asked.saga_id
            if saga_id != request.saga_id:
                raise Malformed("the body's saga_id is not the envelope's")
            order, packed = _accepted(definition, asked, canonical)
            fingerprint = definition.fingerprint(packed)
            wait = request.kind == wire.START or (
                request.kind == wire.RECALL and request.headers != wire.RECALLS_SUBMIT
            )
            live = self._state.by_id.get(saga_id)
            if live is not None:
                self._course.tally.absorbed("start")
                same_content(live.fingerprint, fingerprint)
                self._await(live, waiter, wait, fx)
                return
            card = self._state.finished.find(saga_id)
            if card is not None:
                self._course.tally.absorbed("start")
                card = kept(card)
                same_content(card.fingerprint, fingerprint)
                answer(fx, waiter, card.answer)
                return
            self._begin(definition, order, packed, fingerprint, request, waiter, wait, now, fx)
        except SagacityError as error:
            self._refuse(fx, waiter, error)

    def _recall(self, origin: Peer, request: Request, now: Instant, fx: Effects) -> None:
        """Answer a start as a repeat; one of an unknown id is refused: the router has no room."""
        if not self.knows(request):  # first of all: most are none, and the shard has much to do
            after = max(FULL_RETRY_AFTER_MS, retry_after_ms(self._course.waited_ms))
            text = "too much is in flight, or the router is draining, and no saga has this id"
            raise NotTaken(text, retry_after_ms=after, cause="no_room")
        self._start(origin, request, now, fx)

    def _definition(self, body: bytes) -> Definition:
        try:
            kind = _type_of(body).type
        except (ValueError, RecursionError) as error:
            raise Malformed(str(error)) from None
        found = self._by_type.get(kind)
        if found is None:
            raise NotSupported(f"no saga is started by {kind!r}")
        return found

    def _begin(
        self,
        definition: Definition,
        order: Struct,
        packed: bytes,
        fingerprint: bytes,
        request: Request,
        waiter: Waiter,
        wait: bool,
        now: Instant,
        fx: Effects,
    ) -> None:
        course, state = self._course, self._state
        slot = slot_of(request.saga_id)
        if slot not in course.slots:
            text = f"slot {slot} belongs to another shard"
            raise NotTaken(text, retry_after_ms=250, cause="other_shard")
        unpriced, amount, currency = self._priced(definition, order)
        entry = Started(
            number_of(state.count + 1, course.shard),
            request.saga_id,
            definition.name,
            definition.version,
            fingerprint,
            amount,
            currency,
            state.order_counts[slot] + 1,
            slot,
            state.epoch,
            course.deadline_wall_ms,
            self._accepted_headers(request.headers) if request.headers else request.headers,
            packed,
        )
        fx.entries.append(entry)
        saga = state.started(entry, course.seq)
        saga.started_at = now.ns
        if len(state.live) <= DECODED_MAX:
            saga.run.keep(order)
        course.tally.started(definition.name)
        # One that ends at once tells how.
        self._await(saga, waiter, wait or unpriced is not None, fx)
        if unpriced is not None:
            course.turn_back(saga, UNPRICED, unpriced, now, fx)
        else:
            course.begin(saga, now)

    def _accepted_headers(self, headers: wire.Headers) -> wire.Headers:
        """Leave out a traceparent that cannot be read: no order fails for it."""
        kept = traces.accepted(headers)
        if len(kept) < len(headers):
            self._course.tally.faulted("traceparent")
        return kept

    def _priced(self, definition: Definition, order: Struct) -> tuple[str | None, int, str]:
        """Give why an order cannot start, or None; its amount and currency.

        Raises:
            InternalError: the definition says what no journal can hold.
        """
        try:
            priced = definition.saga.price(order, self._course.prices)
            if isinstance(priced, Unstartable):
                return writable(priced.reason), 0, ""
            amount, currency = priced.amount, writable(priced.currency)
            if type(amount) is not int or not 0 <= amount <= AMOUNT_MAX:
                raise TypeError("an amount is an integer of minor units, not negative")
        except Exception as error:
            raise _raised(definition, error) from error
        return None, amount, currency

    def _await(self, saga: Live, waiter: Waiter, wait: bool, fx: Effects) -> None:
        """Have a request answered: when the saga is final, or at once if that is all it asks."""
        if not wait:
            accepted = {
                "type": f"{saga.definition.saga.request_type}_accepted",
                "saga_id": saga.saga_id,
                "status": phases.PHASES[saga.phase],
            }
            answer(fx, waiter, wire.pack(accepted))
        elif saga.stuck:
            self._refuse(fx, waiter, self._course.stuck_error(saga))
        elif waiter not in saga.waiters:  # a router forwards a repeat under the number it has
            saga.waiters = (*saga.waiters, waiter)
            if len(saga.waiters) > WAITERS_MAX:
                self._refuse(fx, saga.waiters[0], superseded())
                saga.waiters = saga.waiters[1:]

    # -- cancel, retry, show, books ------------------------------------------------------------

    def _find(self, saga_id: str) -> Live | Card:
        check_saga_id(saga_id)
        found = self._state.by_id.get(saga_id) or self._state.finished.find(saga_id)
        if found is None:
            raise UnknownSaga(f"no saga has the id {saga_id}")
        return found if isinstance(found, Live) else kept(found)

    def _meant(self, asked: Cancel | RetryNow, request: Request) -> Live | Card:
        """Give the saga that a request with a reason is about."""
        check_text("reason", asked.reason)
        if asked.saga_id != request.saga_id:
            raise Malformed("the body's saga_id is not the envelope's")
        return self._find(asked.saga_id)

    def _cancel(self, origin: Peer, request: Request, now: Instant, fx: Effects) -> None:
        asked, _ = _cancel.read(request.body)
        waiter = Waiter(origin, request.request, None if asked.msg_id is UNSET else asked.msg_id)
        try:
            saga = self._meant(asked, request)
            if not saga.cancelled:
                if not isinstance(saga, Live) or saga.phase != phases.RUNNING:
                    raise Conflict(f"the saga is {phases.PHASES[saga.phase]}: too late to cancel")
                self._course.turn_back(saga, CANCELLED, f"Cancelled: {asked.reason}", now, fx)
            done = {"type": "cancel_ok", "saga_id": asked.saga_id, "status": "COMPENSATING"}
            answer(fx, waiter, wire.pack(done))
        except SagacityError as error:
            self._refuse(fx, waiter, error)

    def _retry(self, origin: Peer, request: Request, now: Instant, fx: Effects) -> None:
        asked, _ = _retry.read(request.body)
        waiter = Waiter(origin, request.request, None if asked.msg_id is UNSET else asked.msg_id)
        try:
            saga = self._meant(asked, request)
            if not isinstance(saga, Live) or not saga.stuck:
                raise Conflict("only a stuck saga's compensation can be retried")
            entry = RetryAsked(saga.number, saga.step, asked.reason)
            fx.entries.append(entry)
            self._state.retry_asked(entry, self._course.seq)
            self._course.send_now(saga, now)
            done = {"type": "retry_ok", "saga_id": asked.saga_id, "status": "COMPENSATING"}
            answer(fx, waiter, wire.pack(done))
        except SagacityError as error:
            self._refuse(fx, waiter, error)


def _accepted(definition: Definition, asked: Any, canonical: bytes) -> tuple[Struct, bytes]:
    """Have a definition accept a request; give the order, also packed.

    Raises:
        SagacityError: it refuses, or gives what no restart could read.
    """
    try:
        order = definition.saga.accept(asked)
        if order is asked:
            return order, canonical
        packed = wire.encode(order)
        return definition.readers.order(packed), packed
    except SagacityError:
        raise
    except Exception as error:
        raise _raised(definition, error) from error


def _raised(definition: Definition, error: Exception) -> InternalError:
    """Say that a definition's own code has a bug; its start is refused before it is written."""
    return InternalError(f"the definition {definition.name} raised {told_of(error)}")


def _msg_id(body: bytes) -> int | None:
    """Give the msg_id of a body that is refused, where it has one that can be read."""
    try:
        found: int | None = _number_of(body).msg_id
    except (ValueError, RecursionError):
        return None
    return found


def kept(card: Card | Tombstone) -> Card:
    """Refuse an id that is past retention.

    Raises:
        Conflict: the id never runs again.
    """
    if isinstance(card, Tombstone):
        raise no_longer_kept()
    return card


def no_longer_kept() -> Conflict:
    """Tell that an id is past retention."""
    return Conflict("id was used; its outcome is no longer kept")


def same_content(first: bytes, now: bytes) -> None:
    """Refuse an id that was used for other content.

    Raises:
        Conflict: with the first fingerprint.
    """
    if first != now:
        raise Conflict("this id was used for other content", fingerprint=first.hex())


def superseded() -> SagacityError:
    """Tell a request that too many others wait for the same saga."""
    return NoOutcome(f"more than {WAITERS_MAX} requests wait for this saga; ask again")
