"""kill -9 of real processes: one short round of each role. Many: python -m tests.chaos.kill_rounds.

Also that a round can fail: on evidence with one row changed the checker has to turn red.
"""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import apsw
import pytest

from config.load import load_catalog
from sagacity.errors import Malformed
from tests.chaos import checker, evidence
from tests.chaos.load import Asked
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
    figures = done.run()
    assert figures.faults == [], figures.line()
    assert len(figures.kills) == len(targets)
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
    assert all(journal.checkpoint for journal in evidence.read(rounds.data).journals)
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
    supervisor, everyone = killed.figures.kills
    assert supervisor.processes == 1
    assert 0 < supervisor.gone_ms <= 2_000
    assert everyone.processes >= 8
    assert faults(killed, killed.data) == []


def faults(killed: Round, data: Path) -> list[str]:
    """Check evidence against what the round's client was told."""
    return checker.check(evidence.read(data), killed.load.asked, load_catalog().prices)


@pytest.fixture
def altered(killed: Round, tmp_path: Path) -> Path:
    """A copy of what the round left, to be changed."""
    return Path(shutil.copytree(killed.data, tmp_path / "data"))


def change(file: Path, statement: str) -> None:
    """Change one row, or the fault that a test plants is none."""
    with closing(apsw.Connection(str(file))) as db:
        db.execute(statement)
        assert db.changes() == 1


COMPLETED = "(SELECT key >> 5 FROM barrier WHERE outcome = 0 LIMIT 1)"


@pytest.mark.parametrize(
    ("service", "statement", "says"),
    [
        ("inventory", "UPDATE stock SET available = available - 1 WHERE sku = 'abc123'", "stock"),
        ("inventory", "UPDATE reservation SET released = 1 - released WHERE id = 7", "holds"),
        ("inventory", "UPDATE reservation SET quantity = quantity + 1 WHERE id = 7", "stock"),
        ("inventory", "DELETE FROM reservation WHERE id = 7", "was told"),
        ("inventory", "DELETE FROM barrier WHERE key = (SELECT min(key) FROM barrier)", "no row"),
        ("inventory", "UPDATE witness SET seq = seq + 100000 WHERE shard = 0", "does not hold"),
        (
            "inventory",
            "UPDATE fence SET epoch = 9 WHERE slot = (SELECT max(slot) FROM fence)",
            "has epoch 9",
        ),
        ("payment", "UPDATE payment SET refunded = amount - refunded WHERE id = 7", "paid"),
        ("payment", "UPDATE payment SET amount = amount + 1 WHERE id = 7", "paid"),
        ("payment", "INSERT INTO payment VALUES(99999, 1, 2, 'u42', 1, 1)", "without a command"),
        ("payment", f"UPDATE barrier SET saga_id = 'x' WHERE key >> 5 = {COMPLETED}", "command"),
        ("payment", "UPDATE account SET balance = 1", "accounts"),
        ("shipping", "UPDATE shipment SET cancelled = 1 - cancelled WHERE id = 7", "shipments"),
        ("shipping", "UPDATE shipment SET address = 'elsewhere' WHERE id = 7", "shipments"),
        (
            "shipping",
            "INSERT INTO shipment SELECT id + 99999, number, 9, 'x', 0 FROM shipment WHERE id = 7",
            "shipments",
        ),
    ],
)
def test_the_checker_turns_red_on_one_changed_row(
    killed: Round, altered: Path, service: str, statement: str, says: str
) -> None:
    """PROOF 12: who cannot find a planted fault proves nothing."""
    change(altered / "services" / f"{service}.db", statement)
    found = faults(killed, altered)
    assert any(says in fault for fault in found), found
    assert found


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal SET batch = zeroblob(length(batch)) WHERE seq = 3",
        "UPDATE journal SET chain = zeroblob(16) WHERE seq = 3",
        "DELETE FROM journal WHERE seq = 3",
    ],
)
def test_a_changed_row_of_a_journal_is_refused(altered: Path, statement: str) -> None:
    """D4: never skipped, never truncated."""
    change(altered / "shard-0" / "journal.db", statement)
    with pytest.raises(Malformed, match="damaged"):
        evidence.read(altered)


def test_the_checker_turns_red_when_the_newest_row_of_a_journal_is_gone(
    killed: Round, altered: Path
) -> None:
    """The chain cannot tell; the client's answers and the services' rows can."""
    change(
        altered / "shard-0" / "journal.db",
        "DELETE FROM journal WHERE seq = (SELECT max(seq) FROM journal)",
    )
    assert faults(killed, altered)


@pytest.mark.parametrize(
    ("change_told", "says"),
    [
        (lambda asked: asked.pop(next(iter(asked))), "never asked"),
        (lambda asked: asked.update(x=asked[next(iter(asked))]), "in no journal"),
        (
            lambda asked: asked.update(
                {key: Asked(each.ending, each.checkout, b"") for key, each in [*asked.items()][:1]}
            ),
            "was answered",
        ),
        (
            lambda asked: asked.update(
                {
                    key: Asked("declined", each.checkout, each.answer)
                    for key, each in asked.items()
                    if each.ending == "completes"
                }
            ),
            "ended in phase",
        ),
    ],
    ids=["nobody asked it", "asked and lost", "another answer", "another ending"],
)
def test_the_checker_turns_red_when_the_client_was_told_otherwise(
    killed: Round, change_told: Callable[[dict[str, Asked]], object], says: str
) -> None:
    """Invariants 1 and 2 hold against what was heard outside, not against the cluster's word."""
    told = dict(killed.load.asked)
    change_told(told)
    found = checker.check(evidence.read(killed.data), told, load_catalog().prices)
    assert any(says in fault for fault in found), found
