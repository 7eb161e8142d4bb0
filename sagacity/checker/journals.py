"""Invariants 3, 4, 6 and 11: journals, what services saw of them, what was counted. Pure."""

from bisect import bisect_right
from typing import Final

from sagacity.checker.evidence import Fold, Journal, ServiceRows
from sagacity.checker.lives import ABORTED, COMPENSATING, COMPLETED, Life, phase_name
from sagacity.checker.record import ClientRecord, Metrics, Usage
from sagacity.checker.starts import NO_RECORD
from sagacity.checker.verdict import Case, Told
from sagacity.ids import ACTION, COMPENSATION, barrier_key, count_of, shard_of
from sagacity.wire import OK, Answer, Witness

MIB: Final = 1 << 20
MEMORY_MORE_BYTES: Final = 64 * MIB  # beside half of what a process took before
FILES_MORE: Final = 8  # of a role together
THREADS_MORE: Final = 4  # each scrape is answered by a thread that may outlive it by a moment
_USED: Final = ("memory_bytes", "files", "threads")
NO_USAGE: Final = "nobody has measured memory, files and threads"


def journals_are_whole(case: Case, told: Told) -> None:
    """3: rows dense, chained, readable; epochs never fall; nobody has seen more than is there."""
    for journal in case.evidence.journals:
        where = f"journal {journal.shard}"
        for fault in journal.faults:
            told.finding("", fault, where)
        if journal.unread:
            told.cannot(f"{where} cannot be read: {journal.unread}")
        told.looked("rows", len(journal.heads))
        told.looked("finished sagas before them", journal.counts.finished if journal.counts else 0)
        _rows(case, journal, told)
    for service in case.evidence.services.values():
        where = f"services/{service.name}.db"
        for fault in service.faults:
            told.finding("", fault, where)
        if [(name, cluster) for _, name, cluster in service.origin] != [
            (service.name, case.evidence.cluster_id)
        ]:
            told.finding("", f"it is of {service.origin}", where)
        _witnesses(case, service, told)
        _fence(case, service, told)


def _rows(case: Case, journal: Journal, told: Told) -> None:
    where = f"journal {journal.shard}"
    at, epoch = journal.checkpoint, journal.counts.epoch if journal.counts else 0
    opened = dict(journal.opened)
    for head in journal.heads:
        if head.seq != at + 1:
            told.finding("", f"row {head.seq} follows row {at}", where)
        at = head.seq
        entry = opened.get(head.seq)
        if entry is not None:
            follows = entry.epoch == epoch + 1 or (entry.orders_skipped and entry.epoch > epoch)
            if not follows or entry.epoch != head.epoch:
                told.finding("", f"epoch {entry.epoch} follows epoch {epoch}", f"{where}, row {at}")
            if (entry.cluster_id, entry.shard) != (case.evidence.cluster_id, journal.shard):
                text = f"was opened by cluster {entry.cluster_id}, shard {entry.shard}"
                told.finding("", text, f"{where}, row {at}")
            epoch = entry.epoch
        elif head.epoch != epoch:
            text = f"is of epoch {head.epoch}, the shard had {epoch}"
            told.finding("", text, f"{where}, row {at}")
    heads = {head.seq: head for head in journal.heads}
    for story in journal.stories.values():
        for row in story.record:
            if row.seq <= journal.checkpoint:
                continue
            found = heads.get(row.seq)
            if found is None or found.wall_ms != row.wall_ms:
                told.finding(story.started.saga_id, f"stands in row {row.seq}, not there", where)
            elif any(each.epoch > found.epoch for each in row.entries if isinstance(each, Answer)):
                text = f"has an outcome of a later epoch in row {row.seq}"
                told.finding(story.started.saga_id, text, where)


def _witnesses(case: Case, service: ServiceRows, told: Told) -> None:
    """No service has seen more of a journal than is there, nor less than it has answered for."""
    journals = case.evidence.journals
    where = f"services/{service.name}.db"
    seen: dict[int, Witness] = {}
    for witness in service.witnesses:
        told.looked("witnesses", 1)
        if not 0 <= witness.shard < len(journals):
            told.finding("", f"it has seen shard {witness.shard}, which is none", where)
            continue
        if witness.shard in seen:
            told.finding("", f"it has two witnesses of journal {witness.shard}", where)
        seen[witness.shard] = witness
        fault = _unseen(case, witness, journals[witness.shard])
        if fault:
            told.finding("", f"it has seen {fault} of journal {witness.shard}", where)
    for journal in journals:
        if _accepted(journal):
            continue  # what was lost was answered for
        needed = case.answered.get((service.name, journal.shard), 0)
        known = seen.get(journal.shard)
        if needed > (known.seq if known else 0):
            text = f"it knows journal {journal.shard} up to row {known.seq if known else 0}, and"
            told.finding("", f"{text} has answered for row {needed}", where)


def _unseen(case: Case, witness: Witness, journal: Journal) -> str:
    """Say what a witness names that its journal does not hold; "" where it holds all."""
    if witness.cluster_id != case.evidence.cluster_id:
        return f"cluster {witness.cluster_id}"
    if witness.epoch < _accepted(journal):
        return ""  # of before a loss that was accepted
    if not 0 < witness.seq <= journal.last_seq:
        return f"row {witness.seq}"
    if witness.epoch > journal.epoch:
        return f"epoch {witness.epoch}"
    at = bisect_right(journal.heads, witness.seq, key=lambda head: head.seq) - 1
    if at >= 0 and journal.heads[at].seq == witness.seq:
        head = journal.heads[at]
        if (head.chain, head.epoch) != (witness.chain, witness.epoch):
            return f"another row {witness.seq}"
    elif witness.seq == journal.checkpoint and journal.chain != witness.chain:
        return f"another row {witness.seq}"
    if (
        witness.seq >= journal.checkpoint or not journal.forgotten
    ) and witness.number != case.given(journal, witness.seq):
        return f"number {witness.number} in row {witness.seq}"
    if witness.number > case.given(journal, journal.last_seq):
        return f"number {witness.number}"
    return ""


def _accepted(journal: Journal) -> int:
    """Give the epoch that accepted a loss last; 0 for none."""
    before = journal.counts.accepted if journal.counts else 0
    return max([before, *(entry.epoch for _, entry in journal.opened if entry.orders_skipped)])


def _fence(case: Case, service: ServiceRows, told: Told) -> None:
    """A service's fence is no higher than its journal's epoch, no lower than what it answered."""
    owners, where = case.evidence.owners, f"services/{service.name}.db"
    for slot, epoch in service.fence.items():
        told.looked("fenced slots", 1)
        owner = owners[slot] if 0 <= slot < len(owners) else -1
        if owner < 0 or epoch > case.evidence.journals[owner].epoch:
            told.finding("", f"slot {slot} has epoch {epoch}, which its journal never had", where)
    for slot, epoch in case.answered_epochs.get(service.name, {}).items():
        if service.fence.get(slot, 0) < epoch:
            text = f"slot {slot} has epoch {service.fence.get(slot, 0)}, and answered for {epoch}"
            told.finding("", text, where)


def entries_are_lawful(case: Case, told: Told) -> None:
    """4: every entry is a legal transition; however a journal is read, it gives the same."""
    for number, life in case.lives.items():
        story = case.stories[number]
        told.looked("entries", sum(len(row.entries) for row in story.record))
        for fault in life.faults:
            told.finding(life.saga_id, fault, f"journal {story.shard}")
        if case.is_forgotten(number, count_of(number)) and not life.is_final:
            told.finding(life.saga_id, "is forgotten, and has not ended", f"journal {story.shard}")
    for journal in case.evidence.journals:
        where = f"journal {journal.shard}"
        for stray in journal.strays:
            told.finding("", stray, where)
        _lists(journal, told)
        if journal.last_seq and not journal.folds:
            told.cannot(f"nobody has replayed {where}")
        told.looked("replays", len(journal.folds))
        for fold in journal.folds:
            if fold.broken:
                told.finding("", f"{fold.way}: {fold.broken}", where)
        folds = [fold for fold in journal.folds if not fold.broken]
        for fold in folds[1:]:
            _alike(case, folds[0], fold, where, told)
        for fold in folds[:1]:
            _as_walked(case, journal, fold, told)


def _lists(journal: Journal, told: Told) -> None:
    """Lists of forgotten sagas are dense, and go as far as sagas were given numbers."""
    known = journal.counts.lists if journal.counts else 0
    if known and not journal.forgotten:
        text = f"{known} lists were made, and nothing is forgotten"
        told.finding("", text, f"journal {journal.shard}, checkpoint")
    for seq, entry in journal.lists:
        if entry.list_number != known + 1:
            text = f"list {entry.list_number} follows list {known}"
            told.finding("", text, f"journal {journal.shard}, row {seq}")
        known = entry.list_number


def _alike(case: Case, one: Fold, other: Fold, where: str, told: Told) -> None:
    for name in sorted(one.counts.keys() & other.counts.keys()):
        mine, its = one.counts.get(name), other.counts.get(name)
        if mine != its:
            text = f"{name} is {mine} by {one.way}, {its} by {other.way}"
            told.finding("", text, where)
    for number in sorted({*one.running, *other.running}):
        if one.running.get(number) != other.running.get(number):
            text = f"stands otherwise by {one.way} than by {other.way}"
            told.finding(case.name(number), text, where)


def _as_walked(case: Case, journal: Journal, fold: Fold, told: Told) -> None:
    """A replay by the cluster's own rules comes to where the checker's walk does."""
    where = f"journal {journal.shard}"
    numbers = {n for n in journal.stories if n in case.lives and not case.lives[n].is_final}
    unplanned = any(number not in case.lives for number in journal.stories)
    if not unplanned and numbers != set(fold.running):
        for number in sorted(numbers ^ set(fold.running)):
            text = f"{'runs' if number in fold.running else 'does not run'} by {fold.way}"
            told.finding(case.name(number), text, where)
    for number in numbers & set(fold.running):
        life, standing = case.lives[number], fold.running[number]
        step = life.left[0] if life.phase == COMPENSATING and life.left else life.step
        walked = (life.phase, step, life.direction)
        if walked != (standing.phase, standing.step, standing.direction):
            text = f"is {phase_name(life.phase)} in step {step}, by {fold.way} {standing}"
            told.finding(life.saga_id, text, where)


def ends_are_right(case: Case, told: Told) -> None:
    """6: COMPLETED: all succeeded once, nothing undone; ABORTED: undone in reverse, all of it."""
    told.looked("final sagas", sum(life.is_final for life in case.lives.values()))
    gone = {name: rows.forgets() for name, rows in case.evidence.services.items()}
    for number, life in case.lives.items():
        if not life.is_final:
            continue
        story, plan = case.stories[number], case.plans[number]
        where = f"journal {story.shard}, row {story.record[-1].seq}"
        done = {place: answer.outcome for place, answer in life.outcomes.items()}
        if life.phase == COMPLETED:
            wanted = {(step, ACTION): OK for step in range(1, len(plan.services) + 1)}
            if done != wanted or life.undone or life.cause:
                told.finding(life.saga_id, f"is COMPLETED with the outcomes {done}", where)
        elif life.undone != life.owed or not life.cause:
            text = f"is ABORTED, owed the compensations {life.owed} and had {life.undone}"
            told.finding(life.saga_id, text, where)
        for step, name in enumerate(plan.services, 1):
            service = case.evidence.services.get(name)
            if service is None:
                told.cannot(f"there is no database of {name}")
                continue
            ranges = gone[name].get(shard_of(number))
            if ranges is None or count_of(number) not in ranges:
                _in_service(number, step, life, service, told)


def _in_service(number: int, step: int, life: Life, service: ServiceRows, told: Told) -> None:
    """What a service keeps of a step is what the saga's end says."""
    where = f"services/{service.name}.db, barrier"
    key = barrier_key(number, step, ACTION)
    action, compensation = service.barrier.get(key), service.barrier.get(key | COMPENSATION)
    if life.phase == COMPLETED:
        if action is None or action[1] != OK or compensation is not None:
            told.finding(life.saga_id, f"is COMPLETED, step {step} is not done here", where)
    elif life.phase == ABORTED:
        undone = compensation is not None and compensation[1] == OK
        if action is not None and action[1] == OK and not undone:
            told.finding(life.saga_id, f"is ABORTED, step {step} is not undone here", where)
        if step in life.owed and not undone:
            told.finding(life.saga_id, f"is ABORTED, compensation {step} is not here", where)


def counts_agree(case: Case, told: Told) -> None:
    """11: started = completed + aborted + running, in journals and metrics; nothing leaks."""
    running: dict[int, int] = {}
    for journal in case.evidence.journals:
        lives = [case.lives[number] for number in journal.stories if number in case.lives]
        running[journal.shard] = sum(not life.is_final for life in lives)
        forgotten = sum(high - low + 1 for low, high in journal.forgotten)
        kept = {count_of(number) for number in journal.stories}
        again = sum(1 for count in kept if case.is_forgotten(count << 10 | journal.shard, count))
        ended = len(lives) - running[journal.shard] + forgotten - again
        told.looked("started", len(kept) + forgotten - again)
        if journal.counts is not None and len(lives) == len(journal.stories):
            before = sum(
                life.is_final and journal.stories[number].record[-1].seq <= journal.checkpoint
                for number, life in zip(journal.stories, lives, strict=True)
            )
            listed = sum(high - low + 1 for low, high in journal.counts.forgotten_counts)
            if not before <= journal.counts.finished <= before + listed:
                text = f"{before} had ended, the checkpoint counts {journal.counts.finished}"
                told.finding("", text, f"journal {journal.shard}, checkpoint")
        for fold in journal.folds:
            if fold.broken or any(number not in case.lives for number in journal.stories):
                continue
            counted = (fold.counts.get("finished"), fold.counts.get("running"))
            if counted != (ended, running[journal.shard]):
                text = f"{ended} ended and {running[journal.shard]} run, {counted} by {fold.way}"
                told.finding("", text, f"journal {journal.shard}")
    record = case.evidence.record
    if record is None:
        told.cannot(NO_RECORD)
        return
    _metrics(record, running, told)
    _usage(record, told)


def _metrics(record: ClientRecord, running: dict[int, int], told: Told) -> None:
    last: dict[str, Metrics] = {}
    for scraped in record.metrics:
        last[scraped.process] = scraped
        if faults := scraped.values.get("saga_faults_total", 0):
            told.finding("", f"has counted {faults:g} faults", scraped.process)
    told.looked("processes scraped", len(last))
    for process, scraped in last.items():
        values = scraped.values
        role, _, index = process.rpartition("-")
        if role != "shard":
            continue
        names = ("saga_started_total", "saga_recovered_total", "saga_finished_total")
        if any(name not in values for name in names):
            told.cannot(f"{process} was scraped without its sagas")
            continue
        came, went = values[names[0]] + values[names[1]], values[names[2]]
        runs = running.get(int(index)) if index.isdecimal() else None
        if runs is None or came != went + runs:
            told.finding("", f"{came:g} sagas came, {went:g} ended and {runs} run", process)
    missing = [shard for shard in running if f"shard-{shard}" not in last]
    if missing:
        told.cannot(f"there are no metrics of shard {missing[0]}")


def _usage(record: ClientRecord, told: Told) -> None:
    """Of each role together: which worker of a pool works and which stands by may have changed."""
    first: dict[str, Usage] = {}
    last: dict[str, Usage] = {}
    for used in record.usage:
        first.setdefault(used.process, used)
        last[used.process] = used
    told.looked("processes measured", len(last))
    if not last:
        told.cannot(NO_USAGE)
    for process, used in last.items():
        if first[process] is used:
            told.cannot(f"{process} was measured once, not before and after")
    for role in sorted({process.rpartition("-")[0] for process in last}):
        was, now = (_of_role(role, each) for each in (first, last))
        if now.threads > was.threads + THREADS_MORE:
            told.finding("", f"had {was.threads} threads, has {now.threads}", role)
        if now.files > was.files + FILES_MORE:
            told.finding("", f"had {was.files} open files, has {now.files}", role)
        if now.memory_bytes > was.memory_bytes * 3 // 2 + MEMORY_MORE_BYTES:
            text = f"took {was.memory_bytes // MIB} MiB, takes {now.memory_bytes // MIB}"
            told.finding("", text, role)


def _of_role(role: str, measured: dict[str, Usage]) -> Usage:
    each = [used for name, used in measured.items() if name.rpartition("-")[0] == role]
    sums = (sum(getattr(one, name) for one in each) for name in _USED)
    return Usage(0, role, 0, *sums)
