"""A saga that is stuck, as the checker judges it."""

import pytest

from sagacity.checker.verdict import HOLDS, VIOLATED
from sagacity.saga import Retry
from tests.unit.checked import Cluster, verdicts


def stuck_cluster() -> Cluster:
    cluster = Cluster()
    cluster.step(cluster.start("stuck", user_id="u999"))
    cluster.serve("inventory", "payment")
    cluster.held.pop(b"inventory")
    for _ in range(2 * Retry().stuck_after):
        cluster.after(4_000)
        cluster.step(*cluster.beats())
        cluster.held.pop(b"inventory", None)
    assert cluster.engine.state.stuck == 1
    cluster.recorder.quiet()
    return cluster


@pytest.mark.parametrize("excuse", ["", "stuck", "inventory", "payment"])
def test_a_stuck_saga_needs_a_fault_that_explains_it(excuse: str) -> None:
    """PROOF 5: STUCK is an end only where somebody caused it."""
    cluster = stuck_cluster()
    cluster.recorder.planned("sick")
    cluster.recorder.struck("sick", 1, [excuse] if excuse else [])
    found = verdicts(cluster.evidence())
    assert found[5].verdict == (HOLDS if excuse in ("stuck", "inventory") else VIOLATED)
    assert {n for n, each in found.items() if each.verdict == VIOLATED} <= {5, 11}
    cluster.close()
