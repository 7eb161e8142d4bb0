"""The checker of a kill round: invariants 1 to 3 and 6 to 11 of the proof, from rows alone.

Shares no rule with the cluster: what a saga may do is written down here a second time, plainly, and
every row of the services is held against the entry that must have caused it and against the answer
that the client was given. What cannot be told is a fault. Pure; knows no file and no process.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Final

import msgspec

from sagacity import wire
from sagacity.ids import ACTION, COMPENSATION, order_id
from sagacity.messages import Line, Order
from sagacity.slots import slot_of
from sagacity.wire import DECLINED, OK, Answer
from shard import entries
from shard.entries import AttemptEnded, Finished, TurnedBack
from shard.phases import ABORTED, COMPLETED
from tests.chaos.evidence import Evidence, JournalRead, Row, ServiceRead, Story
from tests.chaos.load import ENDINGS, Asked

STEPS: Final = {1: "inventory", 2: "payment", 3: "shipping"}
TOMBSTONE: Final = -1
FLAKY_ATTEMPTS: Final = 3  # of u_flaky_3 that fail; of any other checkout none does

_read_order = msgspec.msgpack.Decoder(Order).decode


class Way(msgspec.Struct):
    """Which way a saga went.

    Args:
        outcomes: what journals and services must agree on: (step, direction) -> outcome, reply.
        commanded: the highest step whose action may have been sent.
        attempts: that ended without an outcome.
        owed: steps whose compensation is due, in the order in which it is.
        phase: the final one, None if it has none.
        final: the final answer.
    """

    outcomes: dict[tuple[int, int], tuple[int, bytes]]
    commanded: int = 1
    attempts: int = 0
    owed: list[int] = msgspec.field(default_factory=list)
    phase: int | None = None
    final: bytes = b""


def check(evidence: Evidence, asked: Mapping[str, Asked], prices: Mapping[str, int]) -> list[str]:
    """Check what a cluster left against what its one client asked and was answered.

    Args:
        evidence: of the stopped cluster; nothing may be running in it.
        asked: by saga_id: everything that was ever asked of it.
        prices: of a piece, minor units, by SKU.

    Returns:
        The faults found, as sentences.
    """
    return list(_faults(evidence, asked, prices))


def _faults(
    evidence: Evidence, asked: Mapping[str, Asked], prices: Mapping[str, int]
) -> Iterator[str]:
    ways: dict[int, Way] = {}
    stories: dict[int, Story] = {}
    for journal in evidence.journals:
        yield from _journal(evidence, journal)
        stories |= journal.stories
    for number, story in stories.items():
        ways[number] = Way({})
        yield from _walk(story, ways[number])
    yield from _asked(evidence, stories, ways, asked, prices)
    for step, name in STEPS.items():
        service = evidence.services[name]
        yield from _witnesses(evidence, service)
        yield from _barrier(step, service, stories, ways)
    yield from _stock(evidence.services["inventory"], stories, ways)
    yield from _money(evidence.services["payment"], stories, ways)
    yield from _shipments(evidence.services["shipping"], stories, ways)


# -- journals -----------------------------------------------------------------------------------


def _journal(evidence: Evidence, journal: JournalRead) -> Iterator[str]:
    """Invariant 3; that rows are dense, chained and readable was checked when they were read."""
    name = f"journal {journal.shard}"
    if journal.epochs != sorted(journal.epochs):
        yield f"{name}: an epoch fell"
    opened = [entry.epoch for entry in journal.opened]
    before = journal.epochs[0] if journal.checkpoint else 0
    if opened != list(range(before + 1, before + len(opened) + 1)):
        yield f"{name}: taken over with the epochs {opened}"
    for entry in journal.opened:
        if (entry.cluster_id, entry.shard) != (evidence.cluster_id, journal.shard):
            yield f"{name}: opened by {entry}"
    for stray in journal.strays:
        yield f"{name}: an entry without its start, or a second one: {stray}"
    for gap in journal.gaps:
        yield f"{name}: {gap}"
    counts = [number >> 10 for number in journal.stories]
    if counts != list(range(1, len(counts) + 1)):
        yield f"{name}: numbers are not dense"
    starts = [story.seq for story in journal.stories.values()]
    if starts != sorted(starts):
        yield f"{name}: numbers were not given in the order of the starts"


def _walk(story: Story, way: Way) -> Iterator[str]:
    """Invariant 6: a saga's entries are a lawful life; tell which way it went."""
    name = story.started.saga_id
    unknown = True  # whether the outcome of the step at hand is
    turned = False
    step = 1
    for entry in story.entries:
        if way.phase is not None:
            yield f"{name}: an entry after the final one: {entry}"
        elif isinstance(entry, Answer):
            key = (entry.step, entry.direction)
            if entry.saga_id != name or key in way.outcomes:
                yield f"{name}: a foreign or second outcome: {entry}"
            way.outcomes[key] = (entry.outcome, entry.body)
            if entry.direction == ACTION:
                # After the turn a late success of the unknown step may still be noted.
                if entry.step != step or not unknown or (turned and entry.outcome != OK):
                    yield f"{name}: an outcome that nobody waits for: {entry}"
                unknown = False
                if entry.outcome == OK and entry.step < len(STEPS) and not turned:
                    step, unknown = step + 1, True
                elif entry.outcome not in {OK, DECLINED}:
                    yield f"{name}: no outcome: {entry}"
            elif not turned or entry.outcome != OK:
                yield f"{name}: a compensation that is none: {entry}"
        elif isinstance(entry, TurnedBack):
            if turned or entry.step != step:
                yield f"{name}: cannot turn back here: {entry}"
            turned = True
            declined = way.outcomes.get((step, ACTION), (OK, b""))[0] == DECLINED
            if declined != (entry.cause == entries.DECLINED):
                yield f"{name}: turned back for no such reason: {entry}"
            way.owed = list(range(step - declined, 0, -1))
        elif isinstance(entry, Finished):
            way.phase, way.final = entry.phase, entry.answer
        elif isinstance(entry, AttemptEnded):
            way.attempts += 1
        else:
            yield f"{name}: nobody asked for {entry}"
    way.commanded = step
    yield from _ended(name, way, turned)


def _ended(name: str, way: Way, turned: bool) -> Iterator[str]:
    undone = [step for step, direction in way.outcomes if direction == COMPENSATION]
    if way.phase == COMPLETED:
        done = {key: outcome for key, (outcome, _) in way.outcomes.items()}
        if turned or done != {(step, ACTION): OK for step in STEPS}:
            yield f"{name} is COMPLETED with the outcomes {done}"
    elif way.phase == ABORTED:
        if not turned or undone != way.owed:
            yield f"{name} is ABORTED; owed the compensations {way.owed}, had {undone}"
    else:
        yield f"{name} is not final"


def _asked(
    evidence: Evidence,
    stories: Mapping[int, Story],
    ways: Mapping[int, Way],
    asked: Mapping[str, Asked],
    prices: Mapping[str, int],
) -> Iterator[str]:
    """Invariants 1, 2 and 11: what the client asked and heard is what the journals hold."""
    by_id: dict[str, int] = {}
    orders: set[str] = set()
    for number, story in stories.items():
        started = story.started
        if started.saga_id in by_id:
            yield f"{started.saga_id} was started twice"
        by_id[started.saga_id] = number
        slot, order = slot_of(started.saga_id), order_id(started.order_count, started.slot)
        if started.slot != slot or evidence.owners[slot] != story.shard:
            yield f"{started.saga_id} is in journal {story.shard}, slot {started.slot}"
        if order in orders:
            yield f"order {order} was given twice"
        orders.add(order)
        if started.saga_id not in asked:
            yield f"{started.saga_id} was started and never asked"
    for saga_id, sent in asked.items():
        if saga_id not in by_id:
            yield f"{saga_id} was asked and is in no journal"
            continue
        started, way = stories[by_id[saga_id]].started, ways[by_id[saga_id]]
        order_sent = _merged(sent)
        amount = sum(prices[line.sku] * line.quantity for line in order_sent.items)
        if _read_order(started.order) != order_sent or started.amount != amount:
            yield f"{saga_id} was started with {_read_order(started.order)}, {started.amount}"
        if started.fingerprint != blake2b(started.order, digest_size=16).digest():
            yield f"{saga_id} has another fingerprint"
        if sent.answer != way.final:
            yield f"{saga_id} was answered {sent.answer!r}, its journal has {way.final!r}"
        told = wire.unpack(way.final) if way.final else {}
        if told.get("order_id", "") != (
            order_id(started.order_count, started.slot) if way.phase == COMPLETED else ""
        ):
            yield f"{saga_id} was given another order id: {told}"
        if way.attempts != FLAKY_ATTEMPTS * (sent.ending == "flaky"):
            # A delivery that was lost with its worker, or with its shard, is none.
            yield f"{saga_id} ({sent.ending}) used {way.attempts} attempts"
        wanted = COMPLETED if ENDINGS[sent.ending].status == "COMPLETED" else ABORTED
        if way.phase != wanted:
            yield f"{saga_id} ({sent.ending}) ended in phase {way.phase}: {told}"


def _merged(sent: Asked) -> Order:
    checkout = sent.checkout
    quantities: dict[str, int] = {}
    for item in checkout.items:
        quantities[item.sku] = quantities.get(item.sku, 0) + item.quantity
    lines = [Line(sku, quantity) for sku, quantity in quantities.items()]
    return Order(checkout.saga_id, checkout.user_id, lines, checkout.shipping_address)


# -- services -----------------------------------------------------------------------------------


def _witnesses(evidence: Evidence, service: ServiceRead) -> Iterator[str]:
    """Invariant 3: no service has seen more of a journal than is there."""
    for seen in service.witnesses:
        journal = evidence.journals[seen.shard]
        # The chain of a row before the checkpoint is gone with it; a later one must be there.
        chain = journal.chains.get(seen.seq)
        is_known = chain == seen.chain if chain else 0 < seen.seq < journal.checkpoint
        if not is_known or seen.cluster_id != evidence.cluster_id:
            yield f"{service.name} saw {seen}, which journal {seen.shard} does not hold"
        if seen.epoch > journal.epochs[-1]:
            yield f"{service.name} saw epoch {seen.epoch} of journal {seen.shard}"
    for slot, epoch in service.fence.items():
        if epoch > evidence.journals[evidence.owners[slot]].epochs[-1]:
            yield f"{service.name} has epoch {epoch} for slot {slot}, its journal never had"


def _barrier(
    step: int, service: ServiceRead, stories: Mapping[int, Story], ways: Mapping[int, Way]
) -> Iterator[str]:
    """Invariant 7: every effect has its command, every outcome in a journal its row."""
    for key, (saga_id, outcome, reply) in service.barrier.items():
        number, at, direction = key >> 5, key >> 1 & 15, key & 1
        row = f"{service.name}: the barrier's row of {saga_id}, direction {direction}"
        story = stories.get(number)
        if story is None or story.started.saga_id != saga_id or at != step:
            yield f"{row}, number {number}, step {at}: no such command"
            continue
        way = ways[number]
        if step > way.commanded or (direction == COMPENSATION and step not in way.owed):
            yield f"{row}: it was never commanded"
        known = way.outcomes.get((step, direction))
        if known is None:
            # An action whose outcome never reached the journal has to be compensated.
            if step not in way.owed or outcome not in {OK, DECLINED, TOMBSTONE}:
                yield f"{row}: outcome {outcome}, in no journal"
        elif known != (outcome, reply):
            yield f"{row}: outcome {outcome} {reply!r}, in the journal {known}"
    for number, way in ways.items():
        for at, direction in way.outcomes:
            if at == step and (number << 5 | step << 1 | direction) not in service.barrier:
                name = stories[number].started.saga_id
                yield f"{service.name}: no row for {name}, direction {direction}"


def _ids_told(way: Way, step: int) -> list[str]:
    """Give the ids that the action's stored reply names."""
    outcome, reply = way.outcomes.get((step, ACTION), (None, b""))
    if outcome != OK:
        return []
    told = wire.unpack(reply)
    if step == 1:
        return [str(each["reservation_id"]) for each in told["reservations"]]
    return [str(told["payment_id" if step == 2 else "shipment_id"])]


def _effects(
    rows: list[Row], step: int, letter: str, stories: Mapping[int, Story], ways: Mapping[int, Way]
) -> Iterator[str]:
    """Rows `id, number, step, ...` are exactly those that the action's replies name."""
    ids: dict[int, list[str]] = {}
    for row in rows:
        ids.setdefault(row[1], []).append(f"{letter}{row[0]}")
        if row[1] not in stories or row[2] != step:
            yield f"an effect without a command: {row}"
    for number, way in ways.items():
        told, there = _ids_told(way, step), ids.get(number, [])
        if told != there and (step, ACTION) in way.outcomes:
            yield f"{stories[number].started.saga_id} was told {told}, there are {there}"


def _stock(
    inventory: ServiceRead, stories: Mapping[int, Story], ways: Mapping[int, Way]
) -> Iterator[str]:
    """Invariant 8: initial = available + shipped; what was aborted holds nothing."""
    reservations = inventory.tables["reservation"]
    yield from _effects(reservations, 1, "r", stories, ways)
    gone: dict[str, int] = {}
    held: dict[int, list[Line]] = {}
    for _, number, _, line, sku, quantity, released in reservations:
        if not released:
            gone[sku] = gone.get(sku, 0) + quantity
            held.setdefault(number, []).append(Line(sku, quantity))
            if line != len(held[number]) - 1:
                yield f"number {number} holds line {line} out of place"
    for number, way in ways.items():
        started = stories[number].started
        wanted = _read_order(started.order).items if way.phase == COMPLETED else []
        if held.get(number, []) != wanted:
            yield f"{started.saga_id} holds {held.get(number)}, not {wanted}"
    for sku, initial, available in inventory.tables["stock"]:
        if initial - available != gone.pop(sku, 0) or available < 0:
            yield f"stock of {sku}: {available} of {initial} does not fit what was shipped"
    if gone:
        yield f"shipped what was never in stock: {gone}"


def _money(
    payment: ServiceRead, stories: Mapping[int, Story], ways: Mapping[int, Way]
) -> Iterator[str]:
    """Invariant 9: a completed saga paid its price once, an aborted one nothing."""
    payments = payment.tables["payment"]
    yield from _effects(payments, 2, "p", stories, ways)
    paid: dict[int, list[int]] = {}
    for _, number, _, _, amount, refunded in payments:
        paid.setdefault(number, []).append(amount - refunded)
        if type(amount) is not int or not 0 <= refunded <= amount:
            yield f"number {number} was charged {amount} and refunded {refunded}"
    crashed = {number for (number,) in payment.tables["crash"]}
    for number, way in ways.items():
        started = stories[number].started
        sums = paid.get(number, [])
        if way.phase == COMPLETED and sums != [started.amount]:
            yield f"{started.saga_id} is COMPLETED, costs {started.amount} and paid {sums}"
        if way.phase == ABORTED and any(sums):
            yield f"{started.saga_id} is ABORTED and paid {sums}"
        if (_read_order(started.order).user_id == "u_crash") != (number in crashed):
            yield f"{started.saga_id}: crash of its worker {number in crashed}"
    if payment.tables["account"] != [("u999", 0)]:
        yield f"accounts are {payment.tables['account']}"


def _shipments(
    shipping: ServiceRead, stories: Mapping[int, Story], ways: Mapping[int, Way]
) -> Iterator[str]:
    """Invariant 10: one live shipment for each completed saga, none for any other."""
    shipments = shipping.tables["shipment"]
    yield from _effects(shipments, 3, "s", stories, ways)
    live: dict[int, list[str]] = {}
    for _, number, _, address, cancelled in shipments:
        if not cancelled:
            live.setdefault(number, []).append(address)
    for number, way in ways.items():
        order = _read_order(stories[number].started.order)
        wanted = [order.shipping_address] if way.phase == COMPLETED else []
        if live.get(number, []) != wanted:
            yield f"{order.saga_id} has live shipments to {live.get(number)}, not {wanted}"
