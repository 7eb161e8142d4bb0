"""Real Maelstrom nodes on pipes that never block: `sagacity maelstrom --connect URL`, many times.

Knows processes, pipes and lines; nothing of what the lines say.
"""

import os
import select
import subprocess
import sys
import tempfile
from typing import Final

COMMAND: Final = (sys.executable, "-P", "-m", "cluster", "maelstrom")
READ_BYTES: Final = 1 << 16


class Node:
    """A node's process.

    Args:
        name: its node id.
        url: of the cluster's router.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the node
        self.process = subprocess.Popen(
            [*COMMAND, "--connect", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.ended = False  # its stdout is
        self._unsent = b""
        self._read = b""

    def say(self, line: bytes) -> None:
        """Write a line, now or when there is room."""
        self._unsent += line
        self.flush()

    def flush(self) -> None:
        """Write what there is room for; to one that has ended, nothing."""
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self.stdin, self._unsent) :]
        except BlockingIOError:
            return
        except OSError:  # killed: as good as lost on the way
            self._unsent = b""

    @property
    def has_unsent(self) -> bool:
        """Whether something waits for room."""
        return bool(self._unsent)

    def lines(self) -> list[bytes]:
        """Give the whole lines that it has said meanwhile."""
        try:
            while not self.ended:
                read = os.read(self.stdout, READ_BYTES)
                self.ended = not read
                self._read += read
        except BlockingIOError:
            pass
        *found, self._read = self._read.split(b"\n")
        return found

    def kill(self) -> None:
        """End it as kill -9 does."""
        self.process.kill()
        self.process.wait()

    def end(self, timeout_s: float = 20.0) -> tuple[int, str]:
        """End its input, wait for its end.

        Returns:
            Its exit code and what it said on stderr.
        """
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self.process.returncode
        self.stderr.seek(0)
        return code, self.stderr.read().decode(errors="replace")

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.stderr.close()


def wait(nodes: list[Node], timeout_s: float) -> None:
    """Wait until a node says something or has room again, at most so long."""
    poll = select.poll()
    for node in nodes:
        if not node.ended:
            poll.register(node.stdout, select.POLLIN)
        if node.has_unsent:
            poll.register(node.stdin, select.POLLOUT)
    for descriptor, _ in poll.poll(timeout_s * 1000):
        for node in nodes:
            if descriptor == node.stdin:
                node.flush()
