"""Invariants 7 to 10: effects in services against the commands that may have caused them. Pure.

Of a checkout every row of stock, money and shipments is known beforehand; of other sagas the
barrier's rows alone.
"""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct, field

from checker.bodies import is_about, said
from checker.evidence import CHECKOUT, ServiceRows, TableRow
from checker.lives import COMPENSATING, COMPLETED, RUNNING, Life, place_name
from checker.verdict import Case, Told
from sagacity import wire
from sagacity.ids import ACTION, COMPENSATION, barrier_key, count_of, shard_of
from sagacity.messages import Order
from sagacity.wire import DECLINED, OK

RESERVE, CHARGE, SHIP = 1, 2, 3  # the steps of checkout, as SPEC 1 numbers them
TOMBSTONE: Final = -1
FIRST_TRANSACTION: Final = 12345

_read_order = wire.decoder(Order)

# Columns of the services' own tables, by their place.
_ID, _NUMBER, _STEP = 0, 1, 2


def effects_have_commands(case: Case, told: Told) -> None:
    """7: a command has an earlier entry, an effect a command; one a (number, step, direction)."""
    for service in case.evidence.services.values():
        _barrier(case, service, told)
        _outcomes(case, service, told)
    for name in sorted({name for plan in case.evidence.plans.values() for name in plan.services}):
        if name not in case.evidence.services:
            told.cannot(f"there is no database of {name}")
    for step, table in ((RESERVE, "reservation"), (CHARGE, "payment"), (SHIP, "shipment")):
        for service, rows in _of_step(case, step, table):
            _effects(case, service, step, table, rows, told)
    _crashes(case, told)
    for sent in case.evidence.wire or ():
        told.looked("commands on the wire", 1)
        life = case.lives.get(sent.number)
        if life is None and case.is_forgotten(sent.number, count_of(sent.number)):
            continue
        due = life.due.get((sent.step, sent.direction)) if life else None
        if due is None or due > sent.witness_seq:
            where = f"the wire, after row {sent.witness_seq} of journal {sent.shard}"
            text = f"{place_name(sent.step, sent.direction)} left, due by row {due}"
            told.finding(case.name(sent.number), text, where)


def _of_step(case: Case, step: int, table: str) -> Iterator[tuple[ServiceRows, list[TableRow]]]:
    """Give the service of a checkout's step, and a table of it; nothing where there is none."""
    plan = case.evidence.plans.get(CHECKOUT)
    if plan is not None and len(plan.services) >= step:
        service = case.evidence.services.get(plan.services[step - 1])
        if service is not None and table in service.tables:
            yield service, service.tables[table]


def _barrier(case: Case, service: ServiceRows, told: Told) -> None:
    """Every row of the barrier is of a command that may have been sent."""
    gone = service.forgets()
    where = f"services/{service.name}.db, barrier"
    told.looked("barrier rows", len(service.barrier))
    for key, (saga_id, outcome, reply) in service.barrier.items():
        number, step, direction = key >> 5, key >> 1 & 15, key & 1
        row = place_name(step, direction)
        life = case.lives.get(number)
        forgotten = gone.get(shard_of(number))
        if forgotten is not None and count_of(number) in forgotten:
            told.finding(saga_id, f"{row} of number {number} is forgotten, and is here", where)
        elif life is None:
            known = number in case.stories  # its definition is not known
            if not known and not case.is_forgotten(number, count_of(number)):
                told.finding(saga_id, f"{row}: no journal knows number {number}", where)
        elif life.saga_id != saga_id:
            text = f"{row} stands under number {number}, of saga {life.saga_id}"
            told.finding(saga_id, text, where)
        else:
            plan = case.plans[number]
            services = plan.services
            if not 1 <= step <= len(services) or services[step - 1] != service.name:
                told.finding(saga_id, f"{row} is not of this service", where)
            elif not life.may_have_sent(step, direction):
                told.finding(saga_id, f"{row} was never commanded", where)
            else:
                _row(life, service, (step, direction), (outcome, reply), key, told)


def _row(
    life: Life,
    service: ServiceRows,
    place: tuple[int, int],
    kept: tuple[int, bytes],
    key: int,
    told: Told,
) -> None:
    """A row says what the journal says; where that says nothing, something that may be."""
    step, direction = place
    where = f"services/{service.name}.db, barrier"
    row = place_name(step, direction)
    outcome, reply = kept
    known = life.outcomes.get(place)
    if known is not None:
        if (known.outcome, known.body) != kept:
            text = f"{row} has outcome {outcome} here, {known.outcome} in its journal"
            told.finding(life.saga_id, f"{text}, or another reply", where)
    elif outcome not in ((OK, DECLINED, TOMBSTONE) if direction == ACTION else (OK,)):
        told.finding(life.saga_id, f"{row} has outcome {outcome}", where)
    elif life.is_final and (direction == COMPENSATION or step not in life.owed):
        told.finding(life.saga_id, f"{row} has outcome {outcome}, its journal none", where)
    if outcome == TOMBSTONE and (reply or key | COMPENSATION not in service.barrier):
        told.finding(life.saga_id, f"{row} is a tombstone without a compensation", where)
    elif outcome != TOMBSTONE and known is None and not is_about(reply, life.saga_id, step):
        told.finding(life.saga_id, f"{row} has a reply about something else", where)
    if direction == COMPENSATION and key & ~1 not in service.barrier:
        told.finding(life.saga_id, f"{row} has no row of its action before it", where)


def _outcomes(case: Case, service: ServiceRows, told: Told) -> None:
    """Every outcome in a journal has its row."""
    gone = service.forgets()
    where = f"services/{service.name}.db, barrier"
    for number, life in case.lives.items():
        plan = case.plans[number]
        services = plan.services
        ranges = gone.get(shard_of(number))
        if ranges is not None and count_of(number) in ranges:
            continue
        for step, direction in life.outcomes:
            mine = 1 <= step <= len(services) and services[step - 1] == service.name
            if mine and barrier_key(number, step, direction) not in service.barrier:
                text = f"{place_name(step, direction)} has an outcome, and no row here"
                told.finding(life.saga_id, text, where)


class _Expected(Struct):
    """What a step of a checkout must have left: the ids of its rows, and whether it is undone."""

    ids: list[int] = field(default_factory=list)
    undone: bool = False


def _expected(service: ServiceRows, number: int, step: int) -> _Expected | None:
    """Give what a step must have left; None where its barrier's rows are gone."""
    ranges = service.forgets().get(shard_of(number)) if service.forgotten else None
    if ranges is not None and count_of(number) in ranges:
        return None
    key = barrier_key(number, step, ACTION)
    action = service.barrier.get(key)
    if action is None or action[1] != OK:
        return _Expected()
    undone = key | COMPENSATION in service.barrier
    return _Expected(_ids(said(action[2]), step), undone)


def _ids(reply: dict[str, Any], step: int) -> list[int]:
    """Give the ids of the rows that a stored reply names."""
    try:
        if step == RESERVE:
            return [int(str(each["reservation_id"])[1:]) for each in reply["reservations"]]
        if step == SHIP:
            shipment = int(str(reply["shipment_id"])[1:])
            return [shipment] if reply["tracking_number"] == f"1Z999AA{shipment}" else []
        payment = int(str(reply["payment_id"])[1:])
        fits = reply["transaction_id"] == f"txn_{FIRST_TRANSACTION - 1 + payment}"
    except (KeyError, TypeError, ValueError):
        return []
    return [payment] if fits else []


def _effects(
    case: Case, service: ServiceRows, step: int, table: str, rows: list[TableRow], told: Told
) -> None:
    """The rows of a step are exactly those that the barrier's replies name, with what was asked."""
    where = f"services/{service.name}.db, {table}"
    told.looked(f"{table}s", len(rows))
    by_number: dict[int, list[TableRow]] = {}
    for row in rows:
        by_number.setdefault(row[_NUMBER], []).append(row)
        number = row[_NUMBER]
        if number not in case.stories and not case.is_forgotten(number, count_of(number)):
            told.finding("", f"{table} {row[_ID]}: no journal knows number {number}", where)
        elif row[_STEP] != step and _is_checkout(case, number):
            text = f"{table} {row[_ID]} is of step {row[_STEP]}"
            told.finding(case.name(number), text, where)
    for number, life in case.lives.items():
        if not _is_checkout(case, number):
            continue
        expected = _expected(service, number, step)
        there = by_number.get(number, [])
        if expected is None:
            continue
        if [row[_ID] for row in there] != expected.ids:
            ids = [row[_ID] for row in there]
            text = f"step {step} was told {table}s {expected.ids}, there are {ids}"
            told.finding(life.saga_id, text, where)
        order = _order(case, number)
        for line, row in enumerate(there):
            if order is not None and not _as_asked(case, number, order, step, line, row):
                text = f"{table} {row[_ID]} is not what was asked: {row}"
                told.finding(life.saga_id, text, where)
            if _is_undone(step, row) != expected.undone:
                state = "undone" if expected.undone else "not undone"
                text = f"{table} {row[_ID]} is not what its command left: {state}"
                told.finding(life.saga_id, text, where)


def _as_asked(case: Case, number: int, order: Order, step: int, line: int, row: TableRow) -> bool:
    if step == RESERVE:
        if line >= len(order.items):
            return False
        wanted = order.items[line]
        return list(row[3:6]) == [line, wanted.sku, wanted.quantity]
    if step == CHARGE:
        return list(row[3:5]) == [order.user_id, case.starts[number].amount]
    return bool(row[3] == order.shipping_address)


def _is_undone(step: int, row: TableRow) -> bool:
    if step == CHARGE:
        return bool(row[5])
    return bool(row[-1])


def _crashes(case: Case, told: Told) -> None:
    """The marks of u_crash (SPEC 1) are of its sagas, and of each whose charge came through."""
    for service, rows in _of_step(case, CHARGE, "crash"):
        marked = {row[0] for row in rows}
        where = f"services/{service.name}.db, crash"
        if len(marked) != len(rows):
            told.finding("", "a mark is there twice", where)
        for number in marked - set(case.lives):
            if not case.is_forgotten(number, count_of(number)) and number not in case.stories:
                told.finding("", f"number {number} has a mark, and no journal knows it", where)
        for number in case.lives:
            order = _order(case, number)
            crashes = order is not None and order.user_id == "u_crash"
            expected = _expected(service, number, CHARGE)
            charged = expected is not None and bool(expected.ids)
            if (number in marked and not crashes) or (crashes and charged and number not in marked):
                told.finding(case.name(number), f"a mark: {number in marked}", where)


def _is_checkout(case: Case, number: int) -> bool:
    started = case.starts.get(number)
    return started is not None and started.saga == CHECKOUT


def _order(case: Case, number: int) -> Order | None:
    """Give what a checkout asked for; None for another saga, or where it cannot be read."""
    if not _is_checkout(case, number):
        return None
    try:
        order: Order = _read_order(case.starts[number].order)
    except ValueError:
        return None
    return order


def stock_adds_up(case: Case, told: Told) -> None:
    """8: initial = available + held + shipped, none negative; an aborted saga holds nothing."""
    for fault in case.evidence.audit or ():
        told.finding("", fault, "audit")
    found = list(_of_step(case, RESERVE, "stock"))
    if not found:
        told.cannot("there is no stock to look at")
        return
    [(service, stock)] = found
    where = f"services/{service.name}.db, stock"
    gone: dict[str, int] = {}
    held: dict[int, list[TableRow]] = {}
    for row in service.tables.get("reservation", ()):
        number, sku, quantity, released = row[_NUMBER], row[4], row[5], row[6]
        if type(quantity) is not int or quantity <= 0 or released not in (0, 1):
            told.finding(case.name(number), f"holds {quantity} of {sku}, {released}", where)
        if not released:
            gone[sku] = gone.get(sku, 0) + quantity
            held.setdefault(number, []).append(row)
    told.looked("reservations", len(service.tables.get("reservation", ())))
    for number, life in case.lives.items():
        order = _order(case, number)
        lines = [(row[4], row[5]) for row in held.get(number, ())]
        if order is None:
            continue
        whole = [(line.sku, line.quantity) for line in order.items]
        if life.phase == COMPLETED and lines != whole:
            told.finding(life.saga_id, f"is COMPLETED and holds {lines}, not {whole}", where)
        elif life.is_final and life.phase != COMPLETED and lines:
            told.finding(life.saga_id, f"is ABORTED and holds {lines}", where)
        elif lines not in ([], whole):
            told.finding(life.saga_id, f"holds a part of its cart: {lines}", where)
    catalog = case.evidence.record.catalog if case.evidence.record else None
    known: dict[str, int] = {}
    for sku, initial, available in stock:
        told.looked("SKUs", 1)
        if sku in known:
            told.finding("", f"{sku} is there twice", where)
        known[sku] = initial
        taken = gone.pop(sku, 0)
        if not 0 <= available <= initial or initial - available != taken:
            text = f"{sku}: {available} of {initial} are available, {taken} held or shipped"
            told.finding("", text, where)
    if catalog is not None and known != catalog.stock:
        told.finding("", f"it began with {known}, the catalog says {catalog.stock}", where)
    for sku, taken in gone.items():
        told.finding("", f"{taken} of {sku} are held or shipped, and it is not in stock", where)


def money_adds_up(case: Case, told: Told) -> None:
    """9: COMPLETED charged = total, refunded = 0; ABORTED charged - refunded = 0; integers only."""
    found = list(_of_step(case, CHARGE, "payment"))
    if not found:
        told.cannot("there are no payments to look at")
        return
    [(service, payments)] = found
    where = f"services/{service.name}.db, payment"
    told.looked("payments", len(payments))
    told.looked("final sagas", sum(life.is_final for life in case.lives.values()))
    paid: dict[int, list[tuple[int, int]]] = {}
    spent: dict[str, int] = {}
    for row in payments:
        number, user, amount, refunded = row[_NUMBER], row[3], row[4], row[5]
        whole = type(amount) is int and type(refunded) is int
        if not whole or not 0 <= refunded <= amount or refunded not in (0, amount):
            text = f"was charged {amount} and refunded {refunded}"
            told.finding(case.name(number), text, where)
            continue
        paid.setdefault(number, []).append((amount, refunded))
        spent[user] = spent.get(user, 0) + amount - refunded
    for number, life in case.lives.items():
        if not _is_checkout(case, number):
            continue
        total, sums = case.starts[number].amount, paid.get(number, [])
        if life.phase == COMPLETED and sums != [(total, 0)]:
            text = f"is COMPLETED, costs {total}, was charged and refunded {sums}"
            told.finding(life.saga_id, text, where)
        elif life.phase not in (COMPLETED, RUNNING, COMPENSATING) and any(
            amount != refunded for amount, refunded in sums
        ):
            told.finding(life.saga_id, f"is ABORTED, was charged and refunded {sums}", where)
        elif len(sums) > 1:
            told.finding(life.saga_id, f"was charged more than once: {sums}", where)
    _accounts(case, service, spent, told)


def _accounts(case: Case, service: ServiceRows, spent: dict[str, int], told: Told) -> None:
    """What an account began with is what it has, and what its sagas have spent."""
    where = f"services/{service.name}.db, account"
    accounts = service.tables.get("account", ())
    balances: dict[str, int] = dict(accounts)
    if len(balances) != len(accounts):
        told.finding("", "an account is there twice", where)
    catalog = case.evidence.record.catalog if case.evidence.record else None
    for user, balance in balances.items():
        if type(balance) is not int or balance < 0:
            told.finding("", f"{user} has {balance}", where)
    if catalog is None:
        return
    wanted = {user: began - spent.get(user, 0) for user, began in catalog.accounts.items()}
    if balances != wanted:
        told.finding("", f"the balances are {balances}, not {wanted}", where)


def shipments_are_single(case: Case, told: Told) -> None:
    """10: one live shipment for each COMPLETED saga, none live for any other that has ended."""
    found = list(_of_step(case, SHIP, "shipment"))
    if not found:
        told.cannot("there are no shipments to look at")
        return
    [(service, shipments)] = found
    where = f"services/{service.name}.db, shipment"
    told.looked("shipments", len(shipments))
    told.looked("final sagas", sum(life.is_final for life in case.lives.values()))
    live: dict[int, int] = {}
    for row in shipments:
        if row[4] not in (0, 1):
            told.finding(case.name(row[_NUMBER]), f"has a shipment {row[4]}", where)
        live[row[_NUMBER]] = live.get(row[_NUMBER], 0) + (not row[4])
    for number, life in case.lives.items():
        if not _is_checkout(case, number):
            continue
        count, wanted = live.get(number, 0), int(life.phase == COMPLETED)
        if life.is_final and count != wanted:
            text = f"has ended with {count} live shipments, not {wanted}"
            told.finding(life.saga_id, text, where)
        elif count > 1:
            told.finding(life.saga_id, f"has {count} live shipments", where)
