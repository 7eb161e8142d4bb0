"""Scenarios of several acts, small: real clusters, what they judge without figures of time."""

import json
from pathlib import Path
from typing import Any

from bench import __main__ as bench


def played(file: Path, *words: str) -> dict[str, Any]:
    """Play a scenario; give what it wrote. Its exit code may tell of a busy machine."""
    assert bench.main([*words, "--json", str(file)]) in (0, 1)
    found: dict[str, Any] = json.loads(file.read_bytes())
    return found


def figure(found: dict[str, Any], what: str) -> dict[str, Any]:
    [row] = [row for row in found["figures"] if row["what"] == what]
    return dict(row)


def test_a_flash_sale_sells_exactly_what_there_is(tmp_path: Path) -> None:
    """All want the same thing: none is sold twice, none is left while somebody wants it."""
    words = ["--runs", "1", "--buyers", "200", "--units", "120", "--in-flight", "64"]
    found = played(tmp_path / "f.json", "flash-sale", *words)
    assert figure(found, "completed, the fewest")["values"] == [120]
    assert figure(found, "completed, the most")["met"] is True
    assert figure(found, "turned away")["values"] == [80]
    [sale] = found["runs"]["sale"]
    assert sale["balanced"] is True


def test_nothing_acknowledged_is_lost_with_a_killed_shard(tmp_path: Path) -> None:
    """And the scenario would see it: it counts the books against what clients were told."""
    words = ["--runs", "1", "--rate", "200", "--part", "0.1", "--victim", "shard"]
    found = played(tmp_path / "f.json", "failover", *words)
    assert figure(found, "shard: acknowledged and not COMPLETED")["values"] == [0]
    assert figure(found, "shard: books less what clients know")["values"] == [0]
    assert figure(found, "shard: gap")["values"][0] > 0
    [run] = found["runs"]["shard"]
    assert run["balanced"] is True
    assert sum(run["per_tenth"]) == run["completed"] + run["aborted"]
    assert any("replaced" in note for note in run["notes"])
