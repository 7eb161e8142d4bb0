"""Figures of benches and campaigns: judged as they are promised, told so that nobody is misled."""

import json
from pathlib import Path

import pytest

from bench.figures import Figure, Figures
from bench.in_flight import ids
from bench.outside import disk_bytes
from sagacity.slots import SlotMap


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure("a", "s", (1.0, 2.0, 9.0), at_most=2.0), True),
        (Figure("a", "s", (1.0, 2.1, 9.0), at_most=2.0), False),
        (Figure("a", "", (0.8, 0.9, 1.0), at_least=0.9), True),
        (Figure("a", "", (0.8, 0.89, 1.0), at_least=0.9), False),
        (Figure("a", "", (3.0,), at_least=1.0, at_most=2.0), False),
        (Figure("a", "s", (), at_most=2.0, why="it never came back"), False),
        (Figure("a", "s", (5.0,)), None),
    ],
)
def test_a_figure_is_judged_by_its_median(figure: Figure, met: bool | None) -> None:
    """The promises are medians; what could not be measured is never met."""
    assert figure.met is met


def test_the_exit_code_says_whether_everything_asked_is_met() -> None:
    """Who runs it in a script reads no table."""
    figures = Figures("some")
    figures.add("nothing is asked of it", "s", 99.0)
    figures.add("good", "ms", [1.0, 2.0], at_most=5.0)
    assert figures.end() == 0
    figures.missing("rest", "s", "the cluster did not serve", at_most=2.0)
    assert figures.end() == 1


def test_a_table_says_what_was_asked_measured_and_met(tmp_path: Path) -> None:
    """A reader has to see a failure and its reason at once; a script gets the same."""
    figures = Figures("some")
    figures.add("speed", "1/s", [900.0, 1200.0, 1000.0], at_least=950)
    figures.missing("return", "s", "it never came back", at_most=2)
    assert figures.table().splitlines() == [
        "some",
        "        asked       measured                 met",
        "speed   >= 950 1/s  1 000 1/s (900 - 1 200)  yes",
        "return  <= 2 s      no figure                NO",
        "return: no figure, because: it never came back",
    ]
    figures.end(tmp_path / "some.json")
    told = json.loads((tmp_path / "some.json").read_text())
    assert [row["met"] for row in told["figures"]] == [True, False]
    assert told["figures"][0]["median"] == 1000
    assert told["figures"][1]["why"] == "it never came back"


def test_each_shard_gets_its_exact_part_of_the_ids() -> None:
    """A limit a shard is reached by all at once, and by none before."""
    slots = SlotMap.even(3)
    found = ids(300, slots, 3)
    owners = [slots.owner(saga_id) for saga_id in found]
    assert [owners.count(shard) for shard in range(3)] == [100, 100, 100]
    assert len(set(found)) == 300


def test_every_file_of_a_directory_is_counted_where_it_belongs(tmp_path: Path) -> None:
    """A WAL, or a file that a later version adds, must not be forgotten."""
    for place in ("shard-0/journal.db", "shard-1/more/x", "services/payment.db-wal", "lock"):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 4096)
    found = disk_bytes(tmp_path)
    one = found["payment"]
    assert one >= 4096
    assert found == {"all": 4 * one, "shards": 2 * one, "payment": one}
