"""`sagacity top`: what a cluster does now, on a terminal. Options, and the loop.

What is asked is in `sampling`, what it means in `figures`, how it looks in `screen`, the only room
that knows rich: it comes with the extra `top`, and `--json` does without.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import to_builtins

from cluster import render
from cluster.directory import find_running
from cluster.figures import Figures
from cluster.sampling import Watcher
from sagacity.errors import Malformed, SagacityError

if TYPE_CHECKING:
    from rich.console import Console

INTERVAL_S: Final = 2.0
INTERVALS_S: Final = (0.2, 3600.0)
NEEDS_RICH: Final = (
    "top draws with rich, which is not installed: pip install 'sagacity[top]'; "
    "--once --json does without"
)


class Shows(Protocol):
    """Where pages are shown; `screen.Screen` is one."""

    def show(self, found: Figures, away: str = "") -> None:
        """Show a page; `away` says why the cluster does not answer, where it does not."""


class Looks(Protocol):
    """Who takes samples; `sampling.Watcher` is one."""

    def look(self) -> Figures:
        """Take a sample, and give the figures up to it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `top`."""
    parser.description = (
        "Show what a cluster does now: rates, outcomes, latency, shards, pools, and what needs a "
        "person. Ctrl-C ends it. Off a terminal it is one plain page, as with --once. What each "
        "figure means: docs/top.md."
    )
    parser.add_argument("--once", action="store_true", help="one page, after one interval, and end")
    parser.add_argument(
        "--interval",
        type=_interval,
        default=INTERVAL_S,
        metavar="S",
        help=f"seconds between two samples, over which rates are told; {INTERVAL_S:g} if left out",
    )
    parser.add_argument(
        "--json", action="store_true", help="for scripts: one line of JSON, as with --once"
    )
    parser.add_argument(
        "--connect",
        metavar="URL",
        help="the router's address; else SAGACITY_URL, else the one cluster that runs here",
    )


def _interval(text: str) -> float:
    seconds = float(text)
    least, most = INTERVALS_S
    if not least <= seconds <= most:  # NaN, too
        raise argparse.ArgumentTypeError(f"an interval is {least:g}..{most:g} s, not {text}")
    return seconds


def run_top(options: argparse.Namespace) -> int:
    """Show the cluster.

    Returns:
        0; a live view, too, is ended by Ctrl-C as by a word.

    Raises:
        SagacityError: no cluster answers at the start; or rich is not installed.
    """
    try:
        on = None if options.json else _console()
        with Watcher(lambda: _url(options)) as watcher:
            if on is None:
                _print(render.json_line(to_builtins(two_looks(watcher, options.interval))))
            else:
                _on_terminal(on, watcher, options)
    except SagacityError as error:
        if options.json:
            # Its text may quote an argument that has no place in UTF-8.
            text = error.text.encode("utf-8", "backslashreplace").decode()
            _print(render.json_line({**error.body(), "text": text}))
        raise
    return 0


def _on_terminal(on: "Console", watcher: Watcher, options: argparse.Namespace) -> None:
    from cluster import screen  # noqa: PLC0415 - an extra; `_console` has said where it is not there

    if options.once or not screen.can_move(on):
        _print(screen.text(two_looks(watcher, options.interval), on))
        return
    first = watcher.look()  # fails as every command does, before the terminal is taken
    with _ended_by_signals() as unless_ended, screen.Screen(on) as shows:

        def wait() -> None:
            unless_ended()
            time.sleep(options.interval)

        watch(watcher, shows, first, wait)


def _console() -> "Console":
    """Give stdout for rich.

    Raises:
        Malformed: rich is not installed.
    """
    try:
        from cluster import screen  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise Malformed(NEEDS_RICH) from None
    return screen.console()


def two_looks(
    looks: Looks, interval_s: float, wait: Callable[[float], None] = time.sleep
) -> Figures:
    """Give figures with rates: of two samples, an interval apart."""
    looks.look()
    wait(interval_s)
    return looks.look()


def watch(looks: Looks, shows: Shows, first: Figures, wait: Callable[[], None]) -> None:
    """Show one page after the other, until `wait` or anything else raises KeyboardInterrupt.

    A cluster that does not answer is said above its last figures, and asked again.
    """
    found = first
    try:
        shows.show(found)
        while True:
            wait()
            try:
                found = looks.look()
            except SagacityError as error:
                shows.show(found, error.text or type(error).__name__)
            else:
                shows.show(found)
    except KeyboardInterrupt:
        return


@contextmanager
def _ended_by_signals() -> Iterator[Callable[[], None]]:
    """Have signals unwind, so that the terminal is given back; then as it was.

    Gives what raises again where a signal has come: what it raised is lost where Python was in the
    middle of freeing something.
    """
    came: list[int] = []

    def unless_ended() -> None:
        if came:
            raise KeyboardInterrupt if came[0] == signal.SIGINT else SystemExit(128 + came[0])

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        unless_ended()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield unless_ended
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _url(options: argparse.Namespace) -> str:
    url: str | None = options.connect or os.environ.get("SAGACITY_URL")
    return url or find_running()


def _print(text: str) -> None:
    if sys.stdout is None:  # closed by who started us
        return
    # Bytes: a terminal's or pipe's encoding does not change what scripts read.
    sys.stdout.buffer.write(f"{text}\n".encode())
    sys.stdout.buffer.flush()
