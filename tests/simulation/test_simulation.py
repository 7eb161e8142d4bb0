"""The simulation: seeds hold, can be played again, and planted bugs are found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from sagacity.simulation import plan_of, prove, run
from sagacity.simulation.proving import read_plan, write_plan
from sagacity.simulation.shrink import kind_of, shrink
from shard.finished import FinishedInMemory
from shard.generations import Generations
from shard.store import Store
from tests.simulation.__main__ import REGRESSIONS, main
from tests.simulation.checkout import SCENARIO

SEEDS = 1_000
SAGAS = 8
ON_DISK = (
    "compactions",
    "merges of segments",
    "recoveries from a checkpoint",
    "losses of power that took what was not synced",
    "losses of power that tore what was not synced",
    "losses of power during a recovery",
    "sagas past retention",
    "answers that an outcome is no longer kept",
)
_TRACES = """
from sagacity.simulation import plan_of, run
from tests.simulation.checkout import SCENARIO
print([run(SCENARIO, plan_of(SCENARIO, seed, 20)).trace for seed in range(40)])
"""


def test_every_invariant_holds_over_a_thousand_seeds() -> None:
    """No fault that a seed draws loses, doubles or leaves half-done a checkout."""
    proof = prove(SCENARIO, range(1, SEEDS + 1), sagas=SAGAS, jobs=2)
    assert proof.broken == {}
    assert proof.figures["sagas in journals"] >= SEEDS * SAGAS
    for reached in ("kill", "kill_all", "die_at_point", "hang", "part", "reset", "full", "slow"):
        assert proof.figures[reached] > 0
    for reached in ("frames lost", "frames doubled", "frames overtaken", "failed syncs", "clock"):
        assert proof.figures[reached] > 0
    for reached in ON_DISK:
        assert proof.figures[reached] > 0, reached


def test_a_seed_is_a_history_whatever_the_hash_seed() -> None:
    """Two processes with different hash seeds send the same frames at the same times."""
    traces = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _TRACES],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        traces.append(done.stdout)
    assert traces[0] == traces[1]


@pytest.mark.parametrize("file", sorted(REGRESSIONS.glob("*.json")), ids=lambda file: file.stem)
def test_what_once_broke_holds(file: Path) -> None:
    """Each plan that found a bug of ours is played for ever."""
    assert run(SCENARIO, read_plan(file)).violations == ()


def test_a_planted_bug_is_found_and_its_plan_made_short() -> None:
    """The negative control: an engine that takes a finished id for a new one is caught at once."""
    with patch.object(FinishedInMemory, "find", lambda _self, _saga_id: None):
        seed = min(prove(SCENARIO, range(1, 20), sagas=SAGAS).broken)
        plan = plan_of(SCENARIO, seed, SAGAS)
        short = shrink(SCENARIO, plan)
        assert kind_of(run(SCENARIO, short)) == kind_of(run(SCENARIO, plan))
    assert len(short.asks) <= 2
    assert not short.faults
    assert run(SCENARIO, short).violations == ()


@pytest.mark.parametrize("pragma", ["OFF", "NORMAL"])
def test_a_journal_that_does_not_sync_is_found(pragma: str) -> None:
    """Another control: what is committed and not synced is gone when power is lost."""
    opens = Store._open

    def unsynced(store: Store, cluster_id: str, shard: int) -> None:
        opens(store, cluster_id, shard)
        list(store.db.execute(f"PRAGMA synchronous={pragma}"))

    with patch.object(Store, "_open", unsynced):
        assert prove(SCENARIO, range(1, 61), sagas=SAGAS, jobs=2).broken


def test_an_id_that_a_segment_does_not_know_is_found() -> None:
    """Another: an id that has left memory and is not found on disk would run again."""
    with patch.object(Generations, "_ordinal", lambda _self, _saga_id: None):
        assert prove(SCENARIO, range(1, 21), sagas=SAGAS).broken


def test_a_plan_is_played_again_from_its_file(tmp_path: Path) -> None:
    """What is found on one machine is shown on another, by one command."""
    plan = plan_of(SCENARIO, 7, SAGAS)
    write_plan(plan, tmp_path / "seed-7.json")
    assert read_plan(tmp_path / "seed-7.json") == plan
    assert main(["--replay", str(tmp_path / "seed-7.json")]) == 0


def _changed(**fields: Any) -> str:
    plan = json.loads(msgspec.json.encode(plan_of(SCENARIO, 7, SAGAS)))
    return json.dumps({**plan, **fields})


FAULT = {"at_ms": 1, "kind": "kill", "target": "router"}
NO_PLANS = {
    "empty": ("", "is no plan of a simulation"),
    "truncated": (_changed()[:-100], "is no plan of a simulation"),
    "binary": ("\x00\x01", "is no plan of a simulation"),
    "a list": ("[1, 2]", "is no plan of a simulation"),
    "nested without end": ('{"seed":' + "[" * 100_000, "is no plan of a simulation"),
    "a part": ('{"seed": 1}', "is no plan of a simulation"),
    "something else": ('{"a": 1}', "is no plan of a simulation"),
    "of an older version": (_changed(format=0), "has format 0; this version reads 1"),
    "of a future version": (_changed(format=2, winds=[]), "has format 2; this version reads 1"),
    "more than a plan": (_changed(winds=[]), "unknown field `winds`"),
    "a fault that is none": (_changed(faults=[{**FAULT, "kind": "rot"}]), "a fault that there is"),
    "a fault of nobody": (_changed(faults=[{**FAULT, "target": "rooms"}]), "there is no rooms"),
    "a request for nothing": (
        _changed(asks=[{"at_ms": 1, "client": 0, "kind": 1, "start": 99}]),
        "a start that it does not have",
    ),
    "a client that is none": (
        _changed(asks=[{"at_ms": 1, "client": 9, "kind": 1, "start": 0}]),
        "a request that no client makes",
    ),
    "a time that is none": (_changed(calm_ms=-1), "a time before its beginning"),
    "weather nowhere": (_changed(weather={"moon": {}}), "weather where there is none"),
    "another saga's": (
        _changed(starts=[{"type": "stay", "saga_id": "s", "nights": 2}] * SAGAS),
        "is no plan of this simulation",
    ),
}


@pytest.mark.parametrize("name", NO_PLANS)
def test_a_file_that_is_no_plan_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Truncated, foreign, old and new files: a clear message, exit code 2, the file as it was."""
    text, says = NO_PLANS[name]
    file = tmp_path / "plan.json"
    file.write_text(text)
    before = (file.stat().st_mtime_ns, file.read_bytes())
    assert main(["--replay", str(file)]) == 2
    assert says in capsys.readouterr().err
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before


@pytest.mark.parametrize("file", ["/nowhere/plan.json", "/", "x" * 300])
def test_what_is_no_file_is_refused(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing path, a directory, a name that there cannot be."""
    assert main(["--replay", file]) == 2
    assert "is no plan" in capsys.readouterr().err


def test_a_pipe_in_place_of_a_plan_is_refused_and_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody writes to it: whoever opens it waits for ever."""
    os.mkfifo(tmp_path / "plan.json")
    assert main(["--replay", str(tmp_path / "plan.json")]) == 2
    assert "it is no file" in capsys.readouterr().err
