"""The screen of `top`: what stands on it, on terminals of any size, and that it is given back."""

import io
import re
import sys
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from cluster import screen
from cluster.figures import Figures, Need, figures
from tests.unit.top_world import Made, stuck

SIZES = [(80, 24), (100, 30), (60, 20), (40, 15), (200, 60), (20, 10)]


def busy_cluster(shards: int = 2) -> Figures:
    """Give figures in which there is something of everything."""
    made = Made(shards)
    made.facts = {"epoch": 3, "in_flight": 1_024, "compensating": 12, "stuck": 1}
    made.stuck = [stuck(f"cart-{n}") for n in range(2)]
    before = made.sample()
    for index in range(shards):
        place = ("shard", index)
        made.count(place, "saga_started_total", 12_345)
        made.count(place, "saga_event_loop_busy_seconds_total", 1.7)
        made.count(place, "saga_finished_total", 9_000, saga="checkout", outcome="completed")
        made.count(place, "saga_finished_total", 900, saga="checkout", outcome="aborted")
        made.count(place, "saga_turned_back_total", 0, saga="checkout", cause="declined")
        made.took(place, "saga_duration_seconds", 0.01, 0.02, 2.0, 99.0)
        made.took(place, "saga_journal_commit_duration_seconds", 0.001)
        made.gauge(place, "saga_amount_at_risk", 1_234_500)
        for service in ("inventory", "payment", "shipping"):
            made.gauge(place, "saga_pool_outstanding", 200, service=service)
            made.gauge(place, "saga_pool_credit", 256, service=service)
            made.gauge(place, "saga_pool_waiting", 7, service=service)
    made.after(2_000)
    return figures([before, made.sample()])


def drawn(found: Figures, width: int, height: int | None = None, away: str = "") -> list[str]:
    """Give the lines that a terminal of that size shows; no colours."""
    console = Console(
        file=io.StringIO(), width=width, height=height, color_system=None, markup=False
    )
    with console.capture() as captured:
        console.print(screen.page(found, width=width, height=height, away=away))
    return captured.get().splitlines()


def test_everything_that_an_operator_looks_for_stands_on_one_page() -> None:
    """Issue 6: rates, outcomes, latency, pools, shards, what needs a person."""
    told = [" ".join(line.split()) for line in drawn(busy_cluster(), 80, 24)]
    page = "\n".join(told)
    for text in (
        "started 12345.0/s completed 9000.0/s aborted 900.0/s",
        "latency p50 25.0 ms p99 > 60 s of 8 that ended",
        "in flight 2048 turning back 24 stuck 2 at risk 24690.00",
        "shard state epoch in flight back stuck started ended busy commit p99",
        "0 up 3 1024 12 1 6172.5/s 4950.0/s 85 %",
        "pool active standby gone busy credit waiting given wait",
        "payment 1 1 0 400 512 14",
        "Needs a person",
        "cart-0 249.99 RefundPayment for 3m4s, since 2023-11-14",
    ):
        assert text in page, page


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("shards", [1, 2, 16])
def test_the_page_fits_the_terminal(width: int, height: int, shards: int) -> None:
    """A line that wraps, or one too many, pushes the head off the screen."""
    found = busy_cluster(shards)
    many = replace(found, needs=found.needs * 9)
    for each in (found, many, replace(found, needs=[])):
        lines = drawn(each, width, height)
        assert max(map(len, lines)) <= width
        if height >= 15:
            assert len(lines) <= height
        assert any(line.startswith("Needs a person"[:width]) for line in lines)


def test_what_has_no_room_is_counted() -> None:
    """The longest list is cut first; nothing is left out without a word."""
    found = busy_cluster(16)
    lines = drawn(replace(found, needs=[Need("stuck", f"saga {n}") for n in range(40)]), 80, 24)
    text = "\n".join(lines)
    assert re.search(r"\+\d+ more", text)
    assert re.search(r"and \d+ more", text)
    assert "shipping" in text
    assert "saga 0" in text


@pytest.mark.parametrize(
    ("wanted", "lines", "given"),
    [
        ([2, 3, 1], 20, [2, 3, 1]),
        ([16, 3, 40], 13, [5, 3, 5]),
        ([1, 1, 9], 5, [1, 1, 3]),
        ([5, 5, 5], 0, [1, 1, 1]),
        ([0, 5, 5], 4, [0, 2, 2]),
    ],
)
def test_lines_are_shared_in_turns(wanted: list[int], lines: int, given: list[int]) -> None:
    assert screen.shares(wanted, lines) == given


def test_a_cluster_that_is_away_is_said_above_its_last_figures() -> None:
    lines = drawn(busy_cluster(), 80, 24, away="no answer from ipc:///r")
    assert lines[0].startswith("NO ANSWER since 2023-11-14")
    assert lines[0].rstrip().endswith("no answer from ipc:///r")
    assert any("Needs a person" in line for line in lines)


def test_text_from_outside_is_text() -> None:
    """No markup of rich, no escape of a terminal, no line of its own."""
    evil = "[bold red]x[/] [link=file:///etc]\x1b[2J\u202e\n:smile:"
    found = busy_cluster()
    found = replace(
        found,
        cluster_id=evil[:8],
        processes={evil: 1},
        turned_back={evil: 1.0},
        shards=[replace(found.shards[0], state=evil)],
        pools=[replace(found.pools[0], service=evil)],
        needs=[Need("stuck", evil)],
    )
    console = Console(file=io.StringIO(), width=200, force_terminal=True, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(screen.page(found, width=200, away=""))
    said = captured.get()
    assert "\x1b[2J" not in said
    assert "\u202e" not in said
    assert "\x1b]8" not in said  # a link
    assert "[bold red]x[/]" in said
    assert ":smile:" in said


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def live_console(out: io.StringIO, **settings: Any) -> Console:
    return Console(
        file=out, width=80, height=24, force_terminal=True, color_system="standard", **settings
    )


@pytest.mark.parametrize("ends", [None, KeyboardInterrupt, SystemExit, RuntimeError])
def test_the_terminal_is_given_back_however_it_ends(ends: type[BaseException] | None) -> None:
    """The other screen is left, the cursor is there again."""
    out = Terminal()
    try:
        with screen.Screen(live_console(out)) as shows:
            shows.show(busy_cluster())
            if ends is not None:
                raise ends
    except (KeyboardInterrupt, SystemExit, RuntimeError):
        pass
    said = out.getvalue()
    assert said.count("\x1b[?1049h") == said.count("\x1b[?1049l") == 1
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")
    assert "Needs a person" in said


def test_off_a_terminal_there_is_no_colour_and_no_movement() -> None:
    out = io.StringIO()
    console = screen.console(out)
    assert not screen.can_move(console)
    said = screen.text(busy_cluster(), console)
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) <= screen.PLAIN_WIDTH
    assert "checkout43" not in said
    assert "cart-1" in said


def test_a_dumb_terminal_gets_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot move; and NO_COLOR is heard where it can."""
    monkeypatch.setenv("TERM", "dumb")
    assert not screen.can_move(screen.console(Terminal()))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    console = screen.console(Terminal())
    assert screen.can_move(console)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", screen.text(busy_cluster(), console))
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("COLORTERM", "truecolor")
    coloured = screen.text(busy_cluster(), screen.console(Terminal()))
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", coloured)


def test_a_stdout_that_is_closed_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sagacity top >&-`: nobody reads, nothing breaks."""
    monkeypatch.setattr(sys, "stdout", None)
    assert not screen.can_move(screen.console())
