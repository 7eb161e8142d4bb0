"""Found, and not mended: a clock that is wrong across a restart forgets early (E2, SPEC 2)."""

from pathlib import Path

import pytest

from tests.unit.disk_world import DiskWorld
from tests.unit.test_compaction import finish
from tests.unit.world import bodies

TEN_YEARS_MS = 3_650 * 86_400_000


@pytest.mark.xfail(strict=True, reason="retention dates by the wall clock at the next start")
def test_a_clock_that_is_wrong_when_a_shard_starts_again_forgets_nothing_early(
    tmp_path: Path,
) -> None:
    """Never under 24 h. It jumps ten years ahead, a row is written, the shard is restarted: what
    the journal and the clock say is equally wrong then."""
    world = DiskWorld(tmp_path / "journal.db")
    try:
        world.step(*world.came("inventory", "payment", "shipping"))
        finish(world, *(f"s{at}" for at in range(20)))
        world.settle()
        world.after(1_000, wall_ms=TEN_YEARS_MS)
        finish(world, "after")
        world.restart()
        world.after(1_001)
        world.step(*world.beats())
        assert bodies(world.step(world.start("s0")))[0]["type"] == "checkout_complete"
    finally:
        world.close()
