"""Fuzzing in the default suite: 50 000 cases of a fixed seed, and every case that found something.

What is fuzzed, what may come out and the figures of the campaign: docs/proof/fuzz.md.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.campaign import main
from tests.fuzz.mutation import Mutator
from tests.fuzz.run import RSS_GROWTH_MAX, Run, keep, kept, mutations, regression, shows
from tests.fuzz.target import ACCEPTED, Target
from tests.fuzz.targets import TARGETS

SEED = 1
CASES = {
    "readers": 6_000,
    "router-requests": 16_000,
    "router-replies": 5_000,
    "client-replies": 1_500,
    "shard-requests": 1_500,
    "bodies": 1_500,
    "shard-answers": 1_500,
    "worker-frames": 6_000,
    "command-bodies": 200,
    "maelstrom": 10_000,
    "config-file": 100,
    "config-environment": 100,
    "cluster-json": 500,
    "command-line": 30,
    "journal-file": 60,
    "journal-rows": 3_000,
    "service-file": 60,
}


def test_the_default_suite_runs_fifty_thousand_cases_on_every_target() -> None:
    """As issue 4 asks; a new target must be given its share."""
    assert set(CASES) == set(TARGETS)
    assert sum(CASES.values()) >= 50_000


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    made = TARGETS[request.param]()
    yield made
    made.close()


@pytest.mark.parametrize("target", sorted(CASES), indirect=True)
def test_nothing_but_errors_of_the_table_comes_out_of_garbage(target: Target) -> None:
    """No other exception, no hang, no growing memory; and what follows is answered rightly."""
    result = Run(target, SEED).run(0, CASES[target.name])
    assert not result.findings, result.findings[0].text + result.findings[0].replay
    assert result.cases == CASES[target.name]
    assert len(result.outcomes) >= 2, "mutations that are all taken, or all refused, show nothing"
    assert result.rss_growth <= RSS_GROWTH_MAX


@pytest.mark.parametrize("path", kept(), ids=lambda path: path.stem)
def test_what_fuzzing_has_found_stays_mended(path: Path) -> None:
    """Each case that once brought out something else."""
    name, cases = regression(path)
    target = TARGETS[name]()
    try:
        text = shows(cases, target)
        assert text is None, text
    finally:
        target.close()


@pytest.mark.parametrize("target", ["readers", "maelstrom", "router-requests"], indirect=True)
def test_nothing_else_comes_out_of_what_hypothesis_makes(target: Target) -> None:
    """Bytes that are no mutation of anything valid, shrunk where they find something."""

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(_utf_8)))
    def take(case: bytes) -> None:
        target.fresh()
        target.take(case)

    take()


def _utf_8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# -- the machinery --------------------------------------------------------------------------------


class Faulty(Target):
    """Breaks by a case with an x in it, and by the second y of a block."""

    name = "readers"
    form = "bytes"
    block = 8
    words = (b"x", b"y")

    def corpus(self) -> list[bytes]:
        return [b"abc"]

    def fresh(self) -> None:
        self.seen = 0

    def take(self, case: bytes) -> str:
        if case == b"x":
            raise KeyError("x")
        self.seen += case == b"y"
        assert self.seen < 2
        return ACCEPTED


def test_a_seed_and_an_index_give_the_same_case() -> None:
    """Else a finding could not be shown again; these bytes are the same on every machine."""
    for kind in TARGETS.values():
        one, other = kind(), kind()
        first, second = mutations(one, 7), mutations(other, 7)
        assert [first(at) for at in range(50)] == [second(at) for at in range(50)]
        one.close()
        other.close()
    assert Mutator("t", [b"abcdef"], "bytes").case(3, 5) == b"abcd"


def test_a_finding_is_cut_down_to_its_case() -> None:
    """One case where it is enough, else those before it in its block."""
    cases = [b"a", b"x", b"a", b"a", b"a", b"a", b"a", b"a", b"y", b"b", b"y"]
    result = Run(Faulty(), SEED, lambda index: cases[index]).run(0, len(cases))
    alone, together = result.findings
    assert (alone.index, alone.cases) == (1, [b"x"])
    assert (together.index, together.cases) == (10, [b"y", b"b", b"y"])
    assert together.replay == "python -m tests.fuzz --target readers --seed 1 --index 10"
    assert result.outcomes["finding"] == 2


def test_a_case_that_takes_too_long_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hang would keep everybody else waiting."""

    class Slow(Faulty):
        def take(self, case: bytes) -> str:
            while True:
                pass

    monkeypatch.setattr("tests.fuzz.run.BLOCK_S", 0.05)
    result = Run(Slow(), SEED, lambda _: b"a").run(0, 1)
    assert "Hang" in result.findings[0].text


def test_a_target_that_keeps_what_it_gets_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that grows with garbage ends in no memory."""

    class Greedy(Faulty):
        hoard: ClassVar[list[bytes]] = []

        def take(self, case: bytes) -> str:
            self.hoard.append(b"x" * (1 << 18))  # not zeros: those are no memory yet
            return ACCEPTED

    monkeypatch.setattr("tests.fuzz.run.RSS_GROWTH_MAX", 4 << 20)
    result = Run(Greedy(), SEED, lambda _: b"a").run(0, 200)
    Greedy.hoard.clear()
    assert "memory grew" in result.findings[0].text


def test_what_malloc_keeps_of_freed_memory_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large message, decoded and dropped, leaves the heap larger for good; nothing holds it."""

    class Peaky(Faulty):
        def take(self, case: bytes) -> str:
            return ACCEPTED if case == b"small" else str(len(b"x" * len(case) * (30 << 20)))

    def later(index: int) -> bytes:
        return b"small" if index < 50 else b"L"

    monkeypatch.setattr("tests.fuzz.run.RSS_GROWTH_MAX", 4 << 20)
    assert Run(Peaky(), SEED, later).run(0, 100).findings == []


def test_a_finding_is_kept_and_read_back(tmp_path: Path) -> None:
    """Under its target's name; the default suite runs what stands there."""
    found = Run(Faulty(), SEED, lambda _: b"x").run(0, 1).findings[0]
    path = keep(found, tmp_path)
    assert kept(tmp_path) == [path]
    assert regression(path) == ("readers", [b"x"])


def test_a_campaign_tells_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    """Cases by target and by outcome; exit code 0 where nothing was found."""
    words = ["--cases", "300", "--seed", "3", "--target", "router-replies", "--processes", "1"]
    assert main([*words, "--engine", "mutation"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"router-replies +300 .*dropped \d+", said)


@pytest.mark.parametrize(
    "words",
    [
        ["--index", "5"],
        ["--target", "maelstrom", "--index", "-1"],
        ["--target", "nothing", "--index", "5"],
        ["--cases", "0"],
    ],
)
def test_a_case_that_is_not_there_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and a line that says why."""
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "error: " in capsys.readouterr().err


def test_a_case_can_be_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    """By the command that a finding prints."""
    assert main(["--target", "maelstrom", "--seed", "3", "--index", "5"]) == 0
    assert "nothing comes out that should not" in capsys.readouterr().out
