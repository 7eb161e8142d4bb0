"""kill -9 of real processes: one short round of each role. Many: python -m tests.chaos.kill_rounds.

What a round left is judged by the checker; that the checker can turn red is shown in test_check.
"""

import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from sagacity.checker.rules import INVARIANTS, judge
from sagacity.checker.verdict import HOLDS
from tests.chaos.one_round import Round, Target
from tests.chaos.random_rounds import EVERYONE, KINDS, Plan, RandomRounds, plan

SEED: Final = "suite"
SECONDS: Final = 0.5  # of load before the kill, at most


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A short path: sockets live below it."""
    path = Path(tempfile.mkdtemp(prefix="sg-"))
    yield path
    shutil.rmtree(path)


def one_round(targets: Sequence[Target], base: Path) -> Round:
    """Run a round that has to be good."""
    here = base / targets[0].role
    here.mkdir()
    done = Round(targets, SEED, here, SECONDS)
    seen = done.run()
    assert seen.violations == [], seen.line()
    assert len(seen.kills) == len(targets)
    return done


def test_killed_children_lose_nothing_and_turn_nobody_back(base: Path) -> None:
    """SPEC 3: every saga ends as its content demands, every repeat answers the same bytes."""
    one_round(
        [
            Target("router"),
            Target("shard", 1),
            Target("inventory", "up"),
            Target("payment", "up"),
            Target("shipping", "standby"),
        ],
        base,
    )


def test_what_chance_brings_loses_nothing_either(base: Path) -> None:
    """Several roles, two kills milliseconds apart, a stop while another dies; rows go meanwhile."""
    here = base / "random"
    here.mkdir()
    up, standby = Target("payment", "up"), Target("inventory", "standby")
    plans = [
        Plan("several", [Target("shard", 0), up, standby], 0.3, 0.0, 0.0),
        Plan("twice", [Target("router"), Target("supervisor")], 0.3, 0.005, 0.0),
        Plan("pause and kill", [Target("shard", 1), Target("shipping", "up")], 0.3, 0.0, 0.2),
    ]
    rounds = RandomRounds(plans, SEED, here, tail_bytes=64 << 10)
    assert rounds.run_all() == []
    assert all(journal.checkpoint for journal in rounds.evidence.journals)
    assert [hit.processes > 0 for hit in rounds.hits] == [True] * len(plans)


def test_chance_brings_everything() -> None:
    """PROOF: what a campaign never reached it has not shown."""
    rng = random.Random(SEED)
    drawn = [plan(rng, 1.0) for _ in range(500)]
    assert {each.kind for each in drawn} == set(KINDS)
    assert {target for each in drawn for target in each.targets} == set(EVERYONE)
    assert all(each.targets[0].role != "all" for each in drawn if each.kind.startswith("pause"))


@pytest.fixture(scope="module")
def killed(base: Path) -> Round:
    """A good round in which the supervisor and then every process was killed, and what it left."""
    return one_round([Target("supervisor"), Target("all")], base)


def test_a_killed_supervisor_and_all_killed_at_once_lose_nothing(killed: Round) -> None:
    """E6; the children went with their supervisor, the client went on at the same address."""
    supervisor, everyone = killed.seen.kills
    assert supervisor.processes == 1
    assert 0 < supervisor.gone_ms <= 2_000
    assert everyone.processes >= 8
    assert [each.verdict for each in judge(killed.evidence)] == [HOLDS] * len(INVARIANTS)
