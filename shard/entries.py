"""Entries: the facts in the journal, a closed list. Pure records; the codec writes and reads them.

An outcome is written as it came on the wire (`wire.Answer`). What later versions need is here
from the first day: definition and version, currency, order number, slot and its epoch, headers.
"""

from msgspec import Struct

from sagacity.ranges import Range
from sagacity.wire import Answer, Headers


class Opened(Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A process took the shard over, with the next epoch; the first entry that it writes.

    Args:
        cluster_id: of the journal.
        shard: its index.
        epoch: higher than any before.
        numbers_above: 0; where a loss was accepted, the highest that may have been given to a saga.
        orders_skipped: 0; where a loss was accepted, the order numbers skipped in each slot.
    """

    cluster_id: str
    shard: int
    epoch: int
    numbers_above: int = 0
    orders_skipped: int = 0


class Started(Struct, frozen=True, array_like=True, tag=10):
    """A saga was accepted.

    Args:
        number: dense per shard, never reused.
        saga_id: the idempotency key.
        saga: name of the definition.
        version: of the definition.
        fingerprint: 16 bytes, of the order.
        amount: price, minor units, fixed here for good.
        currency: ISO 4217.
        order_count: order number within the slot.
        slot: that owns the saga.
        slot_epoch: of that slot at the start.
        deadline_ms: wall time at which it turns back.
        headers: as they came with the request, but for a traceparent that is none.
        order: the accepted request, packed.
    """

    number: int
    saga_id: str
    saga: str
    version: int
    fingerprint: bytes
    amount: int
    currency: str
    order_count: int
    slot: int
    slot_epoch: int
    deadline_ms: int
    headers: Headers
    order: bytes


class AttemptEnded(Struct, frozen=True, array_like=True, tag=11, gc=False):
    """An attempt counts: it failed, or its time ran out at a live worker."""

    number: int
    step: int
    direction: int
    attempt: int
    cause: str
    text: str


class TurnedBack(Struct, frozen=True, array_like=True, tag=12, gc=False):
    """The saga turns back; `cause` is one of CAUSES, `reason` is what the client will read."""

    number: int
    step: int
    cause: str
    reason: str


class RetryAsked(Struct, frozen=True, array_like=True, tag=13, gc=False):
    """An operator asked a stuck compensation again."""

    number: int
    step: int
    reason: str


class Finished(Struct, frozen=True, array_like=True, tag=14, gc=False):
    """The final answer, which never changes."""

    number: int
    phase: int
    answer: bytes


class Quarantined(Struct, frozen=True, array_like=True, tag=15, gc=False):
    """A command killed so many workers, each time alone, that it is not sent any more.

    Of an action the outcome is unknown; a compensation is sent again only when an operator asks.
    """

    number: int
    step: int
    direction: int
    attempt: int
    deaths: int


class Forgotten(Struct, frozen=True, array_like=True, tag=16):
    """Final sagas are past retention: every service is to forget them.

    Args:
        list_number: dense per shard, from 1.
        ranges: normal ranges of their counts.
        ordinal: finished sagas below it, in the order in which they ended, are forgotten here.
    """

    list_number: int
    ranges: list[Range]
    ordinal: int


class ForgetTaken(Struct, frozen=True, array_like=True, tag=17, gc=False):
    """A service has said that a list is durable in its database."""

    service: str
    list_number: int


class Ran(Struct, frozen=True, array_like=True, tag=18, gc=False):
    """So long has the shard run in all; the sagas that are final by now became so no later.

    Args:
        ran_ms: loop time, summed over the processes that owned it; never falls.
    """

    ran_ms: int


Entry = (
    Opened
    | Started
    | Answer
    | AttemptEnded
    | TurnedBack
    | RetryAsked
    | Finished
    | Quarantined
    | Forgotten
    | ForgetTaken
    | Ran
)
OF_NO_SAGA = (Opened, Forgotten, ForgetTaken, Ran)  # all others have a `number`

DECLINED = "declined"
TIMED_OUT = "timed_out"  # attempts used up
DEADLINE = "deadline"
CANCELLED = "cancelled"
UNPRICED = "unpriced"
QUARANTINED = "quarantined"  # it killed its workers
CAUSES = (DECLINED, TIMED_OUT, DEADLINE, CANCELLED, UNPRICED, QUARANTINED)


class Batch(Struct, frozen=True, array_like=True, gc=False):
    """One row of the journal: the entries of one group commit.

    Args:
        version: of this format, FORMAT.
        epoch: of the shard that wrote it.
        wall_ms: when.
        entries: in the order in which they happened.
    """

    version: int
    epoch: int
    wall_ms: int
    entries: list[Entry]


FORMAT = 3
