"""`sagacity top` on a terminal, with a real cluster that goes away and comes back."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_up import Up

PATIENCE_S = 40.0
TOP = [sys.executable, "-P", "-m", "cluster", "top", "--interval", "0.2"]


class Terminal:
    """A program on a terminal of 80 columns and 24 lines; every wait has an end."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.said = ""
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**env, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
        )
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def until(self, pattern: str) -> None:
        """Read until something new stands on the screen."""
        seen = len(self.said)
        give_up = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.said[seen:]):
            assert self._read(give_up - time.monotonic()), f"no {pattern}: {self.said[seen:]!r}"

    def end(self) -> int:
        """Read until it has ended."""
        give_up = time.monotonic() + PATIENCE_S
        while self._read(give_up - time.monotonic()):
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self, left_s: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, left_s))
        try:
            read = os.read(self._ours, 1 << 16) if ready else b""
        except OSError:  # its other end is closed
            return False
        self.said += read.decode(errors="replace")
        return bool(read)


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    """An environment in which no other cluster of this user runs."""
    base = Path(tempfile.mkdtemp(prefix="sg-"))
    (base / "runtime").mkdir(mode=0o700)
    found = {**os.environ, "XDG_RUNTIME_DIR": str(base / "runtime"), "SAGACITY_LOG": "error"}
    found.pop("SAGACITY_URL", None)
    yield {**found, "HOME": str(base)}
    shutil.rmtree(base)


def test_a_live_view_outlives_its_cluster_and_leaves_the_terminal_clean(
    env: dict[str, str],
) -> None:
    """Issue 6: a cluster that goes away and comes back is shown; Ctrl-C ends it, exit code 0."""
    data, size = Path(env["HOME"]) / "data", ("--shards", "1", "--workers", "1")
    with Up(data, env, *size) as up, Terminal(TOP, env) as terminal:
        terminal.until("serves")
        terminal.until("over 0[.][0-9] s")
        for text in ("Needs a person", "commit p99", "shipping"):
            assert text in terminal.said
        up.process.kill()
        up.process.wait()
        terminal.until("NO ANSWER since")
        with Up(data, env, *size):
            terminal.until("serves")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.end() == 0
    assert terminal.said.count("\x1b[?1049h") == terminal.said.count("\x1b[?1049l") == 1
    assert terminal.said.rindex("\x1b[?25h") > terminal.said.rindex("\x1b[?25l")
    assert "Traceback" not in terminal.said
