"""What a round's own checkouts have to come to, beside the invariants that hold for every saga."""

from collections.abc import Iterator, Mapping
from typing import Final

from sagacity.checker.evidence import Evidence
from sagacity.checker.lives import PHASES
from sagacity.checker.verdict import Case
from tests.chaos.load import ENDINGS, Asked

FLAKY_ATTEMPTS: Final = 3  # of u_flaky_3 that fail; of any other checkout none does


def violations(evidence: Evidence, asked: Mapping[str, Asked]) -> Iterator[str]:
    """Compare each saga's life with the ending that its content demands.

    Args:
        evidence: of the stopped cluster.
        asked: by saga_id: everything that was ever asked of it.
    """
    lives = {life.saga_id: life for life in Case(evidence).lives.values()}
    for saga_id, sent in asked.items():
        life = lives.get(saga_id)
        if life is None:
            yield f"{saga_id} was asked and is in no journal"
            continue
        if life.attempts != FLAKY_ATTEMPTS * (sent.ending == "flaky"):
            # A delivery that was lost with its worker, or with its shard, is none.
            yield f"{saga_id} ({sent.ending}) used {life.attempts} attempts"
        if PHASES[life.phase] != ENDINGS[sent.ending].status:
            yield f"{saga_id} ({sent.ending}) ended as {PHASES[life.phase]}: {life.reason}"
