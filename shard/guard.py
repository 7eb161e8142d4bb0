"""Guard: whether the journal and a service's database can belong together. Pure.

SQLite drops what stands behind a bad frame without a word, and a backup that was put back looks
like a healthy file. So the two are compared: a service keeps the highest witness that came with the
commands it took (`wire.Witness`), and the journal tells which of its rows a service has answered
for (`State.seen`).

    the witness is above the journal's end, or of another chain        the journal is old
    the witness is below what that service has answered for            its database is old
    the witness names another cluster                                  it is no witness of ours
"""

from collections.abc import Callable, Iterable

from msgspec import Struct

from sagacity.errors import Malformed
from sagacity.wire import Witness
from shard.events import WorkerCame
from shard.sagas import MS
from shard.state import State

JOURNAL_OLD = 1
DATABASE_OLD = 2
FOREIGN = 3

ALL_WITHIN_NS = 5_000 * MS  # for every service's HELLO; for one of them there is no limit

LOSS_GAP = 1 << 20  # what is skipped of epochs, numbers and orders above all that is known


class OldCopy(Malformed):
    """The journal or a service's database is old: the shard does not run. Nothing was written."""


class StartOver(Exception):
    """What was to be known before the first write came after it: the next start knows it."""


class Finding(Struct, frozen=True):
    """Why a service and this journal do not belong together; `text` says what to do."""

    kind: int
    text: str


class Loss(Struct, frozen=True):
    """From where a shard goes on that was told to accept a loss.

    Args:
        epoch: above every witness.
        number: the highest that may have been given to a saga.
        orders: how many order numbers of each slot are skipped.
    """

    epoch: int
    number: int
    orders: int


class Guard:
    """Compares witnesses with one shard's journal.

    Args:
        cluster_id: of the journal.
        shard: its index.
        state: the fold of the journal.
        last_seq: gives the journal's last row.
        chain_at: gives the chain at a row; None where the row is gone.
    """

    def __init__(
        self,
        cluster_id: str,
        shard: int,
        state: State,
        last_seq: Callable[[], int],
        chain_at: Callable[[int], bytes | None],
    ) -> None:
        self._cluster_id = cluster_id
        self._shard = shard
        self._state = state
        self._last_seq = last_seq
        self._chain_at = chain_at

    def judge(self, service: str, witnesses: Iterable[Witness]) -> Finding | None:
        """Compare what a service says with the journal.

        Args:
            service: its name.
            witnesses: the highest of each shard that its database holds.

        Returns:
            None where the two belong together.
        """
        state = self._state
        seen = state.seen.get(service, 0)
        witness = next((each for each in witnesses if each.shard == self._shard), None)
        if witness is None:
            return self._database_old(service, 0, seen) if seen else None
        if witness.cluster_id != self._cluster_id:
            return Finding(
                FOREIGN,
                f"the database of {service} was written for cluster {witness.cluster_id}, "
                f"not for {self._cluster_id}: put this cluster's own database back",
            )
        if witness.epoch < state.accepted:
            return None  # of before a loss that was accepted
        last = self._last_seq()
        if witness.seq > last or witness.epoch > state.epoch:
            return self._journal_old(
                service,
                f"has seen its row {witness.seq} of epoch {witness.epoch}, and it ends at "
                f"row {last} of epoch {state.epoch}",
            )
        chain = self._chain_at(witness.seq)
        if chain is not None and chain != witness.chain:
            return self._journal_old(service, f"has seen another row {witness.seq} in its place")
        return self._database_old(service, witness.seq, seen) if witness.seq < seen else None

    def loss(self, witnesses: Iterable[Witness]) -> Loss:
        """Give from where to go on above everything that anybody knows."""
        state = self._state
        ours = (self._cluster_id, self._shard)
        found = [each for each in witnesses if (each.cluster_id, each.shard) == ours]
        epoch = max([state.epoch, *(witness.epoch for witness in found)])
        number = max([state.number, *(witness.number for witness in found)])
        # No service knows orders, but each accepted loss shows in the epoch: a copy that is put
        # back twice goes on above what it gave out after the first time.
        after = epoch + LOSS_GAP
        return Loss(after, number, after // LOSS_GAP * LOSS_GAP)

    def _journal_old(self, service: str, what: str) -> Finding:
        return Finding(
            JOURNAL_OLD,
            f"the journal of shard {self._shard} is old: {service} {what}. It is a restored copy, "
            f"or it has lost its end. Put the newer shard-{self._shard}/journal.db back, with its "
            "-wal; if there is none, `sagacity up --accept-data-loss` goes on without what is "
            "lost, and `sagacity audit` then shows what was done twice",
        )

    def _database_old(self, service: str, seq: int, seen: int) -> Finding:
        return Finding(
            DATABASE_OLD,
            f"the database of {service} is old: it knows shard {self._shard} up to row {seq}, but "
            f"has answered for row {seen}. It is a restored copy, or it has lost its end. Put the "
            f"newer services/{service}.db back, with its -wal; if there is none, `sagacity up "
            "--accept-data-loss` goes on without what is lost, and `sagacity audit` then shows "
            "what is missing",
        )


class Gate:
    """Who may work with a shard, and when it may begin to write: not before it has compared.

    Args:
        guard: compares.
        services: that its sagas need.
        now_ns: loop time.
        is_open: it writes already.
        accepts_loss: it was told to go on with what there is.
    """

    def __init__(
        self,
        guard: Guard,
        services: frozenset[str],
        now_ns: int,
        *,
        is_open: bool,
        accepts_loss: bool,
    ) -> None:
        self.is_open = is_open
        self._guard = guard
        self._services = services
        self._all_by_ns = now_ns + ALL_WITHIN_NS
        self._accepts_loss = accepts_loss
        self._heard: set[str] = set()
        self._witnesses: list[Witness] = []
        self._lost = False

    def hear(self, came: WorkerCame) -> str | None:
        """Take note of a HELLO.

        Returns:
            Why its worker is rejected; None where it is welcome.

        Raises:
            OldCopy: the shard must not run.
            StartOver: a loss is accepted, but was not known when the shard began to write.
        """
        finding = self._guard.judge(came.service, came.witnesses)
        if finding is not None:
            late_database = finding.kind == DATABASE_OLD and self.is_open
            if finding.kind == FOREIGN or (late_database and not self._accepts_loss):
                return finding.text
            if not self._accepts_loss:
                raise OldCopy(finding.text)
            if self.is_open:
                raise StartOver(f"the loss is accepted at the next start: {finding.text}")
            self._lost = True
        self._heard.add(came.service)
        self._witnesses += () if self.is_open else came.witnesses
        return None

    def may_open(self, now_ns: int) -> bool:
        """Say whether enough services were heard."""
        if self._heard >= self._services:
            return True
        return bool(self._heard) and now_ns >= self._all_by_ns

    def loss(self) -> Loss | None:
        """Give from where to go on, where a loss was found and is accepted."""
        return self._guard.loss(self._witnesses) if self._lost else None
