"""Evidence: what a run has left, as the checker reads it. Knows no rule.

Journals as rows and replays, databases row by row, the clients' record, commands that left. What a
run cannot leave: memory, files and threads, which all its processes share.
"""

from collections.abc import Mapping

from msgspec import Struct, field

from cluster.resting import service_rows
from sagacity.checker.evidence import Evidence, Fold, Journal, Sent, ServiceRows
from sagacity.checker.folds import LIVE, fold_of, plans_of, refolded, replayed
from sagacity.checker.record import Metrics
from sagacity.simulation.clients import Clients
from sagacity.simulation.cluster import CLUSTER, SLOTS, Cluster
from shard.entries import Batch
from shard.journal import JournalRefused, MemoryJournal


class Rows(Struct):
    """What can be read of a journal: rows up to where it breaks, and why it does; "" if not."""

    rows: list[tuple[int, Batch]] = field(default_factory=list)
    broken: str = ""


def rows_of(kept: list[tuple[int, bytes, bytes]]) -> Rows:
    """Read a journal's rows: number, chain and what is packed."""
    journal = MemoryJournal()
    journal.rows = kept
    found = Rows()
    try:
        for row in journal.replay():
            found.rows.append(row)
    except JournalRefused as error:
        found.broken = error.text
    return found


def gather(cluster: Cluster, clients: Clients, rows: Mapping[int, Rows]) -> Evidence:
    """Put together what a cluster that stands still has left.

    Args:
        cluster: every saga of it has ended.
        clients: what they asked and heard.
        rows: of each shard's journal.
    """
    record = clients.record
    for shard, tally in cluster.tallies.items():
        counts = tally.counts
        values: dict[str, int | float] = {
            "saga_started_total": sum(n for key, n in counts.items() if key[0] == "started"),
            "saga_recovered_total": counts["recovered",],
            "saga_finished_total": sum(n for key, n in counts.items() if key[0] == "finished"),
        }
        record.metrics.append(Metrics(0, f"shard-{shard}", 0, values))
    return Evidence(
        CLUSTER,
        tuple(SLOTS.owners),
        [_journal(cluster, shard, rows[shard]) for shard in sorted(cluster.journals)],
        {name: _service(cluster, name) for name in cluster.databases},
        plans_of(cluster.definitions),
        record,
        _sent(cluster),
    )


def _journal(cluster: Cluster, shard: int, read: Rows) -> Journal:
    journal = Journal(shard, faults=[read.broken] if read.broken else [])
    for (seq, batch), (_, chain, _) in zip(read.rows, cluster.journals[shard], strict=False):
        journal.take(seq, batch, chain)
    live: list[Fold] = []
    if shard in cluster.loops:
        live = [fold_of(LIVE, cluster.loops[shard].engine.state)]
    replays = (
        replayed(None, [], read.rows, cluster.definitions),
        refolded(journal, cluster.definitions),
    )
    journal.folds = [*live, *replays]
    return journal


def _service(cluster: Cluster, name: str) -> ServiceRows:
    database = cluster.databases[name]
    database.owner = None  # who reads it now meets no faults
    return service_rows(database, name)


def _sent(cluster: Cluster) -> list[Sent]:
    return [
        Sent(
            left.witness.shard,
            left.witness.seq,
            each.number,
            each.step,
            each.direction,
            each.attempt,
        )
        for left in cluster.left
        for batch in (*left.effects.commands.values(), left.effects.alone.values())
        for each in batch
    ]
