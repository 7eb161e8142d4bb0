"""Invariants 1, 2 and 5: what clients were told, against what the journals hold. Pure."""

from hashlib import blake2b
from typing import Any, Final

from sagacity import wire
from sagacity.checker.bodies import said
from sagacity.checker.evidence import CHECKOUT, Journal
from sagacity.checker.lives import COMPENSATING, final_answer, phase_name
from sagacity.checker.record import STARTS, Ask, Catalog, ClientRecord, Heeded
from sagacity.checker.verdict import Case, Told
from sagacity.errors import Conflict, Malformed, NotSupported, NotTaken
from sagacity.ids import count_of, number_of, order_id, shard_of
from sagacity.messages import Order
from sagacity.slots import slot_of

# The codes that say for certain that this request was not taken.
NOT_TAKEN: Final = (Malformed.code, NotSupported.code, NotTaken.code)
_RANKS: Final = {"RUNNING": 1, "COMPENSATING": 2, "COMPLETED": 3, "ABORTED": 3}
_FINAL: Final = 3
_TOLD: Final = ("order_id", "reason")  # of a checkout's end, to who looks at it
NO_RECORD: Final = "there is no client's record"

_read_order = wire.decoder(Order)


def acknowledged_starts(case: Case, told: Told) -> None:
    """1: an acknowledged id is in exactly one journal, as it was sent; nobody else started one."""
    by_id = _identities(case, told)
    for journal in case.evidence.journals:
        _numbers(case, journal, told)
        _in_order(journal, told)
    record = case.evidence.record
    if record is None:
        told.cannot(NO_RECORD)
        return
    for cluster_id in record.clusters:
        if cluster_id != case.evidence.cluster_id:
            told.finding("", f"it is of cluster {cluster_id}", "client's record")
    asked = _by_id(record)
    told.looked("ids asked", len(asked))
    for saga_id in by_id:
        if not any(ask.kind in STARTS for ask in asked.get(saga_id, ())):
            told.finding(saga_id, "was started, and nobody sent it", _journal_of(case, saga_id))
    for saga_id, asks in asked.items():
        _one_id(case, saga_id, asks, by_id.get(saga_id), told)
    if record.catalog is not None:
        _prices(case, record.catalog, told)


def _identities(case: Case, told: Told) -> dict[str, int]:
    """Every saga is what its number, slot, order and fingerprint say; give numbers by id."""
    by_id: dict[str, int] = {}
    orders: set[str] = set()
    owners = case.evidence.owners
    for number, story in case.stories.items():
        started, where = story.started, f"journal {story.shard}, row {story.seq}"
        saga_id = started.saga_id
        if saga_id in by_id:
            told.finding(saga_id, f"has the numbers {by_id[saga_id]} and {number}", where)
        by_id[saga_id] = number
        slot = slot_of(saga_id)
        if started.slot != slot or not 0 <= slot < len(owners) or owners[slot] != story.shard:
            told.finding(saga_id, f"is in slot {started.slot}, which is not its own", where)
        if started.number != number or shard_of(number) != story.shard:
            told.finding(saga_id, f"has number {started.number}, of another shard", where)
        order = order_id(started.order_count, started.slot)
        if order in orders or started.order_count < 1:
            told.finding(saga_id, f"has order {order}, which another one has", where)
        orders.add(order)
        if started.fingerprint != blake2b(started.order, digest_size=16).digest():
            told.finding(saga_id, "has a fingerprint that is not its order's", where)
        if started.amount < 0:
            told.finding(saga_id, f"costs {started.amount}", where)
        told.looked("sagas", 1)
    return by_id


def _numbers(case: Case, journal: Journal, told: Told) -> None:
    """No start is missing between others: numbers are dense, but where a loss was accepted."""
    where = f"journal {journal.shard}"
    forgotten = case.forgotten[journal.shard]
    skips = [(seq, entry) for seq, entry in journal.opened if entry.orders_skipped]
    for seq, entry in journal.opened:
        if entry.numbers_above and not entry.orders_skipped:
            told.finding(
                "", "numbers are left out, and no loss was accepted", f"{where}, row {seq}"
            )
    before = 0  # count of the last number that must have been given
    for number in sorted(journal.stories):
        seq = journal.stories[number].seq
        while skips and skips[0][0] < seq:
            _, entry = skips.pop(0)
            before = max(before, count_of(entry.numbers_above)) + entry.orders_skipped
        missing = forgotten.first_missing(before + 1)
        # Where a loss was accepted before the checkpoint is no longer known.
        lost = journal.counts is not None and journal.counts.accepted and seq <= journal.checkpoint
        if missing != count_of(number) and count_of(number) not in forgotten and not lost:
            text = f"has number {number}, not {number_of(missing, journal.shard)}"
            told.finding(case.name(number), text, f"{where}, row {seq}")
        before = max(before, count_of(number))
    if journal.counts is not None and not journal.counts.accepted:
        by_then = [n for n, story in journal.stories.items() if story.seq <= journal.checkpoint]
        listed = max((high for _, high in journal.counts.forgotten_counts), default=0)
        highest = max([*by_then, number_of(listed, journal.shard) if listed else 0])
        if journal.counts.number != highest:
            text = f"number {journal.counts.number} was given by it, the highest is {highest}"
            told.finding("", text, f"{where}, checkpoint")
    told.looked("past retention", sum(high - low + 1 for low, high in journal.forgotten))


def _in_order(journal: Journal, told: Told) -> None:
    """Order numbers grow by one in each slot; epochs and deadlines are those of their rows."""
    dense = not journal.forgotten and not any(entry.orders_skipped for _, entry in journal.opened)
    dense = dense and not (journal.counts and journal.counts.accepted)
    orders: dict[int, int] = {}
    wholes: dict[int, int] = {}  # from a start to its deadline, by epoch
    epochs = {head.seq: head.epoch for head in journal.heads}
    epoch = row = 0
    for number in sorted(journal.stories):
        story = journal.stories[number]
        started, where = story.started, f"journal {journal.shard}, row {story.seq}"
        before = orders.get(started.slot, 0)
        if started.order_count <= before or (dense and started.order_count != before + 1):
            text = f"has order count {started.order_count} in its slot, after {before}"
            told.finding(started.saga_id, text, where)
        orders[started.slot] = started.order_count
        if not epoch <= started.slot_epoch == epochs.get(story.seq, started.slot_epoch):
            told.finding(started.saga_id, f"started in epoch {started.slot_epoch}", where)
        if story.seq < row:
            told.finding(started.saga_id, f"got number {number} before a lower one", where)
        epoch, row = started.slot_epoch, story.seq
        whole = started.deadline_ms - story.record[0].wall_ms
        if wholes.setdefault(epoch, whole) != whole or whole <= 0:
            told.finding(started.saga_id, f"has {whole} ms, others have {wholes[epoch]}", where)
    if epoch > journal.epoch:
        told.finding("", f"sagas started in epoch {epoch}", f"journal {journal.shard}")


def _by_id(record: ClientRecord) -> dict[str, list[Ask]]:
    asked: dict[str, list[Ask]] = {}
    for ask in record.asks:
        asked.setdefault(ask.saga_id, []).append(ask)
    return asked


def _one_id(case: Case, saga_id: str, asks: list[Ask], number: int | None, told: Told) -> None:
    """What was answered of one id fits what the journals have of it."""
    where = "client's record"
    started = case.stories[number].started if number is not None else None
    is_past = number is not None and case.is_forgotten(number, count_of(number))
    tombstone = started is None and _is_tombstone(case, saga_id)
    starts = [ask for ask in asks if ask.kind in STARTS]
    for ask in asks:
        for heard in ask.answers:
            if not _acknowledges(heard):
                continue
            told.looked("acknowledgements", 1)
            if started is None and not tombstone:
                told.finding(saga_id, "was acknowledged, and is in no journal", where)
                return
    if started is None:
        return
    # Whether any of these requests can have started it.
    maybe = [ask for ask in starts if not _is_refused(ask)]
    fingerprints = {ask.fingerprint for ask in maybe}
    if None in fingerprints:
        told.cannot("what was asked of other sagas than checkout cannot be compared")
    elif started.fingerprint not in fingerprints:
        what = "was started with content" if maybe else "was started by a request refused, or"
        told.finding(saga_id, f"{what} that nobody sent", _journal_of(case, saga_id))
    for ask in starts:
        for heard in ask.answers:
            same = ask.fingerprint in (None, started.fingerprint)
            if heard.code is None and not same:
                told.finding(saga_id, "other content was answered like the first", where)
            elif heard.code == Conflict.code:
                first = heard.said().get("fingerprint")
                if first is None:  # its outcome is no longer kept, whatever the content
                    if not is_past:
                        told.finding(saga_id, "was said to be no longer kept, and is", where)
                elif ask.fingerprint == started.fingerprint or first != started.fingerprint.hex():
                    told.finding(saga_id, f"was refused as other content than {first}", where)


def _is_refused(ask: Ask) -> bool:
    """Whether a request was not taken, for certain."""
    return bool(ask.answers) and all(heard.code in NOT_TAKEN for heard in ask.answers)


def _acknowledges(heard: Heeded) -> bool:
    return heard.code is None or (heard.code == Conflict.code and "fingerprint" in heard.said())


def _is_tombstone(case: Case, saga_id: str) -> bool:
    hashed = blake2b(saga_id.encode(), digest_size=16).digest()
    return any(hashed in journal.tombstones for journal in case.evidence.journals)


def _prices(case: Case, catalog: Catalog, told: Told) -> None:
    """A checkout's amount is what its cart costs."""
    for story in case.stories.values():
        started = story.started
        if started.saga != CHECKOUT:
            continue
        where = f"journal {story.shard}, row {story.seq}"
        try:
            order = _read_order(started.order)
        except ValueError as error:
            told.finding(started.saga_id, f"its order cannot be read: {error}", where)
            continue
        prices = [catalog.prices.get(line.sku) for line in order.items]
        costs = (
            0
            if None in prices
            else sum(
                (price or 0) * line.quantity
                for price, line in zip(prices, order.items, strict=True)
            )
        )
        if started.amount != costs or order.saga_id != started.saga_id:
            text = f"was started for {started.amount}, its cart costs {costs}"
            told.finding(started.saga_id, text, where)


def _journal_of(case: Case, saga_id: str) -> str:
    slot = slot_of(saga_id)
    owners = case.evidence.owners
    return f"journal {owners[slot]}" if slot < len(owners) else "journals"


def final_answers(case: Case, told: Told) -> None:
    """2: a final answer never changes; for each client, phases never go backwards."""
    finals: dict[str, bytes] = {}
    for number, life in case.lives.items():
        if not life.is_final:
            continue
        story = case.stories[number]
        finals[life.saga_id] = life.final
        told.looked("final sagas", 1)
        promised, answer = final_answer(story, life), said(life.final)
        # Other sagas' answers are in their own words.
        fits = bool(answer) if promised is None else list(promised.items()) == list(answer.items())
        if not fits:
            text = f"is {phase_name(life.phase)} with the answer {answer}"
            told.finding(life.saga_id, text, _at(case, number))
    record = case.evidence.record
    if record is None:
        told.cannot(NO_RECORD)
        return
    lives = {life.saga_id: life for life in case.lives.values()}
    checkouts = {each.saga_id for each in case.starts.values() if each.saga == CHECKOUT}
    ranks: dict[tuple[str, str], list[tuple[int, int, int]]] = {}  # by client and saga
    heard_first: dict[str, bytes] = {}
    for ask in record.asks:
        for heard in ask.answers:
            body = heard.said()
            where = f"client {ask.client}"
            is_checkout = ask.saga_id in checkouts or ask.request_type == CHECKOUT
            if not _is_an_answer(ask, heard, body, is_checkout):
                text = f"{ask.kind} was answered {heard.code}: {body}"
                told.finding(ask.saga_id, text, where)
            rank = _rank(ask, heard, body, is_checkout)
            if rank and ask.kind != "cancel":  # the same is said again, whatever came since
                place = (ask.client, ask.saga_id)
                ranks.setdefault(place, []).append((ask.at, heard.at, rank))
            if rank != _FINAL:
                continue
            its = lives.get(ask.saga_id)
            if ask.kind not in STARTS:  # a look at it: told of its end in other words
                told.looked("looks at ends", 1)
                final = said(finals.get(ask.saga_id, b"")) if is_checkout else {}
                if its is not None and (
                    body.get("status") != phase_name(its.phase)
                    or any(final.get(name, body.get(name)) != body.get(name) for name in _TOLD)
                ):
                    text = f"was shown as {body.get('status')}, its end is {final}"
                    told.finding(ask.saga_id, text, where)
                continue
            told.looked("final answers", 1)
            first = heard_first.setdefault(ask.saga_id, heard.body)
            if heard.body != first:
                text = f"was answered {said(first)}, then {body}"
                told.finding(ask.saga_id, text, where)
            if its is not None and finals.get(ask.saga_id) != heard.body:
                text = f"was answered {body}, its journal has another end"
                told.finding(ask.saga_id, text, where)
    _backwards(ranks, told)


def _is_accepted(ask: Ask, body: dict[str, Any]) -> bool:
    """Say whether a start was answered before its end."""
    kind = str(body.get("type"))
    if ask.request_type:
        return kind == f"{ask.request_type}_accepted"
    return kind.endswith("_accepted") and kind.removesuffix("_accepted").isidentifier()


def _rank(ask: Ask, heard: Heeded, body: dict[str, Any], is_checkout: bool) -> int:
    """Give how far a saga has come by an answer; 0 where it does not say."""
    if heard.code is not None:
        return 0
    if ask.kind in STARTS and not is_checkout and not _is_accepted(ask, body):
        return _FINAL  # in its own words
    return _RANKS.get(str(body.get("status")), 0)


def _is_an_answer(ask: Ask, heard: Heeded, body: dict[str, Any], is_checkout: bool) -> bool:
    """Say whether an answer is one that such a request can get (SPEC 1 to 4)."""
    if heard.code is not None:
        return body.get("type") == "error" and body.get("code") == heard.code
    if ask.kind in STARTS and _is_accepted(ask, body):
        fits = list(body) == ["type", "saga_id", "status"] and body.get("status") in _RANKS
    elif ask.kind in STARTS and not is_checkout:
        return bool(body)  # its own words; they are compared with its journal's
    elif ask.kind in STARTS:
        fits = _RANKS.get(str(body.get("status"))) == _FINAL
    elif ask.kind in ("cancel", "retry"):
        wanted = {"type": f"{ask.kind}_ok", "saga_id": ask.saga_id, "status": "COMPENSATING"}
        fits = list(body.items()) == list(wanted.items())
    else:
        fits = bool(body)
    return fits and body.get("saga_id") == ask.saga_id


def _backwards(ranks: dict[tuple[str, str], list[tuple[int, int, int]]], told: Told) -> None:
    """Whoever asks after an answer came must not be told of an earlier phase."""
    for (client, saga_id), answers in ranks.items():
        for asked_at, _, rank in answers:
            before = [other for _, at, other in answers if at < asked_at]
            if before and max(before) > rank:
                told.finding(saga_id, "went back to an earlier phase", f"client {client}")


def everything_ends(case: Case, told: Told) -> None:
    """5: after the faults stop, every saga is final, or STUCK with a fault that explains it."""
    record = case.evidence.record
    told.looked("sagas", len(case.stories))
    excused: set[str] = set()
    if record is not None:
        excused = {name for struck in record.struck for name in struck.stuck}
    stuck = {
        number
        for journal in case.evidence.journals
        for fold in journal.folds
        for number, standing in fold.running.items()
        if standing.stuck
    }
    for number, life in case.lives.items():
        if life.is_final:
            continue
        if number in stuck and life.phase == COMPENSATING:
            services = case.plans[number].services
            service = services[life.left[0] - 1] if life.left else ""
            if not {life.saga_id, service} & excused:
                text = f"is STUCK in step {life.left[:1]}, and no fault explains it"
                told.finding(life.saga_id, text, _at(case, number))
        elif record is not None and record.quiet:
            text = f"is {phase_name(life.phase)} after the faults have stopped"
            told.finding(life.saga_id, text, _at(case, number))
        else:
            told.cannot("sagas have not ended, and no client's record says that one waited for it")


def _at(case: Case, number: int) -> str:
    story = case.stories[number]
    return f"journal {story.shard}, row {story.record[-1].seq}"
