"""What tests of the faces share: the real command line and the real Maelstrom node."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

COMMAND = [sys.executable, "-P", "-m", "cluster"]
ANSWER_S = 30.0

INIT = {"src": "c0", "dest": "checkout_orchestrator", "body": {"type": "init", "msg_id": 1}}
INIT_OK = (
    b'{"src": "checkout_orchestrator", "dest": "c0", '
    b'"body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}\n'
)


def checkout(saga_id: str, user: str = "u42", **change: Any) -> dict[str, Any]:
    """Give a client's message, as in the specification's example."""
    return {
        "type": "checkout",
        "msg_id": 1,
        "saga_id": saga_id,
        "user_id": user,
        "items": [{"sku": "abc123", "quantity": 2}, {"sku": "xyz789", "quantity": 1}],
        "shipping_address": "123 Main St",
        **change,
    }


def run(
    url: str | None, *words: str, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command of `sagacity` against a cluster."""
    where = {} if url is None else {"SAGACITY_URL": url}
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        env={**os.environ, **where, **(env or {})},
        timeout=60,
        check=False,
    )


class Node:
    """A Maelstrom node's process; every wait has an end."""

    def __init__(self, *words: str, env: Mapping[str, str] | None = None) -> None:
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [*COMMAND, "maelstrom", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )
        self.lines: list[bytes] = []
        self._read = b""

    def __enter__(self) -> "Node":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.communicate(timeout=ANSWER_S)
        except (subprocess.TimeoutExpired, ValueError):
            self.process.kill()
            self.process.wait()

    @property
    def after_s(self) -> float:
        """Seconds since the process was started."""
        return time.monotonic() - self.begun

    def write(self, text: bytes) -> None:
        """Write to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def say(self, body: Any, client: str = "c1", dest: str = "n1") -> None:
        """Write a message."""
        line = json.dumps({"src": client, "dest": dest, "body": body})
        self.write(line.encode() + b"\n")

    def line(self) -> bytes:
        """Read its next line."""
        assert self.process.stdout is not None
        until = time.monotonic() + ANSWER_S
        while b"\n" not in self._read:
            left = until - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, left))
            read = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            assert read, "the node did not answer"
            self._read += read
        found, self._read = self._read.split(b"\n", 1)
        self.lines.append(found + b"\n")
        return found + b"\n"

    def heard(self) -> tuple[str, dict[str, Any]]:
        """Read its next line; give the receiver and the body."""
        message = json.loads(self.line())
        return message["dest"], message["body"]

    def end(self) -> tuple[int, list[dict[str, Any]], bytes]:
        """End its input; give the exit code, the bodies that were left, and stderr."""
        out, err = self.process.communicate(timeout=ANSWER_S)
        left = (self._read + out).splitlines()
        return self.process.returncode, [json.loads(line)["body"] for line in left], err


def pids_of(log: bytes) -> set[int]:
    """Give the processes that a cluster's log speaks of."""
    found = set()
    for line in log.splitlines():
        if line.startswith(b"{"):
            event = json.loads(line)
            found |= {event[key] for key in ("pid", "process_pid") if key in event}
    return found


def alive(pids: set[int]) -> set[int]:
    """Give those that still run."""
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}
