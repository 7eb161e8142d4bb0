"""Crashes at every write and sync (D1, D5, D9, D10): what was promised is there, nothing else."""

import re
import subprocess
import sys
from collections.abc import Iterator

import apsw
import pytest

from sagacity import executor
from sagacity.simulation.vfs import Image, MemoryDisk, memory_disk
from shard import store
from tests.architecture.floors import ROOT
from tests.journal import service
from tests.journal.campaign import main, repeat
from tests.journal.controls import CONTROLS
from tests.journal.crashes import FEW, Campaign, crash_at, crashes
from tests.journal.workloads import of_seed, small, small_limits
from tests.journal.world import Story, survive

AFTER_A_KILL = 12  # operations of the next start, in which the power goes
PHASES = {
    "opening",
    "commit",
    "write-back",
    "compaction",
    "merge",
    "sweep of rows",
    "sweep of a segment",
    "sweep of blocks",
    "close",
}


@pytest.fixture
def disk() -> Iterator[MemoryDisk]:
    with memory_disk() as made, small_limits():
        yield made


def test_a_crash_at_any_write_or_sync_of_a_shards_file_keeps_every_promise(
    disk: MemoryDisk,
) -> None:
    """Acknowledged rows are there, nothing else is; finished ids are found with their answers and
    never new; histories and sealed records are equal; numbers grow; and all work goes on."""
    campaign = Campaign(disk)
    story = small(disk)
    campaign.run("small", story, FEW)
    assert campaign.counts.violations == []
    assert {phase for phase, _ in campaign.counts.operations} == PHASES
    assert sum(campaign.counts.images.values()) > len(story.log)


def test_a_crash_of_a_recovery_keeps_every_promise(disk: MemoryDisk) -> None:
    """D10: at the writes and syncs of some recoveries; the full campaign takes them all."""
    campaign, story = Campaign(disk), small(disk)
    for point in (merging := [n for n, op in enumerate(story.log) if op.phase == "merge"])[2:30:13]:
        for crash in crashes(story, ("torn",), "small"):
            if crash.step == f"{point}-torn-0":
                campaign.follow(f"small/{crash.step}", story, crash, upto=30)
    assert len(merging) > 30
    assert campaign.counts.violations == []
    assert ("recovery", "sync") in campaign.counts.operations
    assert campaign.counts.images[2, "keep"] > 20


@pytest.mark.parametrize("seed", [0, 1])
def test_a_crash_of_a_shard_to_which_anything_happens_keeps_every_promise(
    disk: MemoryDisk, seed: int
) -> None:
    """Schedules of `tests.unit.schedule`; the full campaign takes 200."""
    campaign = Campaign(disk)
    campaign.run(f"seed-{seed}", of_seed(disk, seed), ("drop",))
    assert campaign.counts.violations == []
    assert sum(campaign.counts.images.values()) > 20


def test_a_crash_at_any_write_or_sync_of_a_services_database_keeps_every_answer(
    disk: MemoryDisk,
) -> None:
    """DESIGN 5: effect and barrier row in one transaction; what was answered is answered again."""
    campaign = Campaign(disk, service.survive)
    campaign.run("service", service.small(disk), ("drop", "part-1"))
    assert campaign.counts.violations == []
    phases = {phase for phase, _ in campaign.counts.operations}
    assert phases == {"opening", "commit", "write-back", "list", "close"}


# -- can it fail? ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTROLS)
def test_a_shard_that_is_broken_on_purpose_is_found(disk: MemoryDisk, name: str) -> None:
    """A proof that finds nothing in these proves nothing; and its case repeats."""
    case = Campaign(disk).finds(name, CONTROLS[name](disk), FEW)
    assert case is not None
    assert repeat(case) == 1


@pytest.mark.parametrize("pragma", ["synchronous=OFF", "synchronous=NORMAL"])
def test_a_services_database_that_does_not_sync_is_found(disk: MemoryDisk, pragma: str) -> None:
    """Likewise for the barrier: an answer that a crash takes back."""
    story = service.small(disk, pragma)
    assert Campaign(disk, service.survive).finds("service", story, FEW) is not None


def nothing(*_: object) -> None:
    """Do not sync."""


def test_a_row_that_a_killed_shard_had_not_synced_outlives_a_power_loss_once_it_was_told(
    disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found here: a start replayed it from the page cache and answered reads from it, unsynced."""
    assert found_after_a_kill(disk, small(disk), survive) == 0
    monkeypatch.setattr(store, "sync_wal", nothing)
    assert found_after_a_kill(disk, small(disk), survive) > 0


def test_a_reply_that_a_killed_worker_had_not_synced_outlives_a_power_loss_once_it_was_given_again(
    disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found here: its shard journalled the stored reply, and the charge was gone."""
    assert found_after_a_kill(disk, service.small(disk), service.survive) == 0
    monkeypatch.setattr(executor, "sync_wal", nothing)
    monkeypatch.setattr(executor, "empty_wal", nothing)  # which syncs it, too, where there is room
    assert found_after_a_kill(disk, service.small(disk), service.survive) > 0


def found_after_a_kill(disk: MemoryDisk, story: Story, survives: object) -> int:
    """Kill before each sync of a few commits, then lose the power at each operation after that."""
    campaign = Campaign(disk, survives, deep=1)  # type: ignore[arg-type]  # one of two
    at = [n for n, op in enumerate(story.log) if op.kind == 4 and op.phase == "commit"][-2:]
    for point in at:
        crash = crash_at(story, f"{point}-killed", "killed")
        campaign.follow(f"killed/{crash.step}", story, crash, upto=AFTER_A_KILL)
    return len(campaign.counts.violations)


# -- the disk itself ------------------------------------------------------------------------------


def test_what_was_not_synced_is_dropped_kept_or_torn_by_sectors() -> None:
    """The disk's own promise: it keeps nothing that it need not keep."""
    with memory_disk() as disk:
        disk.load(Image({}))
        db = apsw.Connection("/x.db", vfs=disk.name)
        list(db.execute("PRAGMA locking_mode=exclusive"))
        assert list(db.execute("PRAGMA journal_mode=wal")) == [("wal",)]
        list(db.execute("CREATE TABLE t(a)"))
        begun = len(disk.log)
        list(db.execute("INSERT INTO t VALUES(randomblob(3000))"))
        story = Story(Image({}), list(disk.log), [], [], 0, 0)
        db.close()
        assert [op.kind for op in story.log[begun:]] == [2, 2, 4]  # header, page, sync
        images = {}
        for way in ("drop", "keep", "torn-0", "part-1"):
            images[way] = crash_at(story, f"{begun + 2}-{way}", "x").image.files["/x.db-wal"]
        kept, dropped, torn = images["keep"], images["drop"], images["torn-0"]
        assert len(kept) == len(dropped) + 24 + 4096
        assert kept.startswith(dropped)
        assert len(dropped) < len(torn) < len(kept)
        assert len(torn) % 512 == 0
        assert images["part-1"] not in (kept, dropped)


def test_a_case_that_holds_says_so_and_one_that_is_not_there_is_an_error() -> None:
    """The one command that repeats a case: exit code 0 where every promise holds."""
    with memory_disk() as disk, small_limits():
        story = small(disk)
        crash = list(crashes(story, ("keep",), "small"))[60]
        after = survive(disk, crash.image, story, crash.floor)
        again = next(crashes(after, ("drop",), f"small/{crash.step}"))
    assert repeat(f"small/{crash.step}/{again.step}") == 0
    with pytest.raises(LookupError):
        repeat("small/99999-keep")


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("", "there is no workload ''"),
        ("nonsense/1-keep", "there is no workload 'nonsense'"),
        ("seed-x/1-keep", "there is no workload 'seed-x'"),
        ("small", "names its crash, too"),
        ("small/keep", "has no crash 'keep'"),
        ("in_the_wal/-1", "has the bits 0 to"),
        ("in_the_wal/99999999", "has the bits 0 to"),
    ],
)
def test_a_case_that_is_not_there_is_refused(
    case: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and a line that says why; it once said of nonsense that every promise holds."""
    assert main(["--case", case]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--stride", "0"], ["--seeds", "-4"], ["--jobs", "0"]])
def test_a_campaign_of_nothing_is_refused(option: list[str]) -> None:
    """It would try less than was meant, or end with a stack."""
    with pytest.raises(SystemExit, match="2"):
        main(option)


def test_the_cases_that_the_page_gives_as_commands_are_there() -> None:
    """A workload that has changed has other cases; who follows the page would read that of it."""
    page = (ROOT / "docs" / "proof" / "journal.md").read_text()
    cases = re.findall(r"--case (\S+)", page)
    assert len(cases) == 2
    assert [repeat(case) for case in cases] == [0, 0]


def test_the_campaign_exits_with_1_where_a_case_breaks() -> None:
    """What a script sees; the words name the promise."""
    case = "synchronous_off/33-part-1"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.journal.campaign", "--case", case],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert case in ended.stdout
