"""`sagacity top`: the loop, without a terminal and without a cluster."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import top
from cluster.figures import Figures, figures
from sagacity.errors import InternalError, Malformed, NotTaken, SagacityError
from tests.unit.top_world import Made


class Looks:
    """The twin of a Watcher: gives figures one after the other, or an error."""

    def __init__(self, *answers: SagacityError | None) -> None:
        self._answers = list(answers)
        self._made = Made()
        self.looked = 0

    def look(self) -> Figures:
        answer = self._answers.pop(0) if self._answers else None
        self.looked += 1
        if answer is not None:
            raise answer
        self._made.after(1_000)
        return figures([self._made.sample()])


class Shown:
    """The twin of a Screen."""

    def __init__(self) -> None:
        self.pages: list[tuple[int, str]] = []

    def show(self, found: Figures, away: str = "") -> None:
        self.pages.append((found.at_ms, away))


def interrupted_after(times: int) -> Callable[[], None]:
    """Give a wait that a person ends with Ctrl-C the last time."""
    left = iter(range(times))

    def wait() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return wait


def test_each_interval_shows_new_figures_until_ctrl_c() -> None:
    looks, shown = Looks(), Shown()
    top.watch(looks, shown, looks.look(), interrupted_after(3))
    ages = [at_ms for at_ms, _ in shown.pages]
    assert len(ages) == 4
    assert ages == sorted(set(ages))
    assert {away for _, away in shown.pages} == {""}


@pytest.mark.parametrize("error", [NotTaken("gone"), Malformed("two of them"), InternalError("?")])
def test_a_cluster_that_goes_away_and_comes_back_is_shown(error: SagacityError) -> None:
    """No crash, whatever it is: the last figures stay, with why, until there are new ones."""
    looks, shown = Looks(None, None, error, error), Shown()
    top.watch(looks, shown, looks.look(), interrupted_after(4))
    (_, _), (last, _), gone, still, (back, _) = shown.pages
    assert gone == still == (last, error.text)
    assert back > last


def test_a_ctrl_c_while_the_cluster_is_asked_ends_it_too() -> None:
    class Hangs(Looks):
        def look(self) -> Figures:
            raise KeyboardInterrupt

    shown = Shown()
    top.watch(Hangs(), shown, Looks().look(), lambda: None)
    assert len(shown.pages) == 1


def test_once_takes_two_samples_an_interval_apart() -> None:
    """One alone has no rates."""
    looks, waited = Looks(), list[float]()
    found = top.two_looks(looks, 7.5, waited.append)
    assert (looks.looked, waited) == (2, [7.5])
    assert found.at_ms


@pytest.mark.parametrize("text", ["0", "-1", "0.1", "3601", "nan", "inf", "2s", ""])
def test_an_interval_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises((argparse.ArgumentTypeError, ValueError)):
        top._interval(text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_and_its_handler_is_given_back(number: signal.Signals) -> None:
    """Who is ended by another leaves the terminal clean, too."""
    before = signal.getsignal(number)

    def get_ended() -> None:
        with top._ended_by_signals():
            os.kill(os.getpid(), number)
            signal.pause()

    with pytest.raises(SystemExit) as ended:
        get_ended()
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) == before


BLOCKED = "raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')\n"


def test_without_rich_it_says_what_to_install_and_json_works(tmp_path: Path) -> None:
    """It is an extra; scripts need no drawing."""
    (tmp_path / "rich.py").write_text(BLOCKED)
    command = [sys.executable, "-P", "-m", "cluster", "top"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    env.pop("SAGACITY_URL", None)

    def run(*words: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [*command, *words], env=env, capture_output=True, timeout=60, check=False
        )

    drawn = run("--once")
    assert (drawn.returncode, drawn.stdout) == (2, b"")
    assert b"pip install 'sagacity[top]'" in drawn.stderr
    assert b"Traceback" not in drawn.stderr
    assert run("--json").returncode == 5  # past rich: no cluster runs here
