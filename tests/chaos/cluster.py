"""The cluster that a campaign does something to: its place and environment, its begin and its end.

All campaigns start theirs here, whatever load they put on it. Leaves no process, and no file where
the place was made for it. Knows nothing of who asks it for what.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cluster.private import ClusterProcess, start_private
from tests.chaos import processes

SHARDS: Final = 2  # as `up` has without a word
SERVICES: Final = ("inventory", "payment", "shipping")


class RoundFailed(Exception):
    """A round cannot go on: what it waits for does not happen."""


class OwnCluster:
    """A cluster of one's own. A context: it runs in the block.

    Args:
        base: an empty directory with a short path; a temporary one if left out. The cluster's
            directory is `base/data` and may be there already.
        arguments: flags of `up`.
        env: more of its processes' environment.
        logs: its processes log into `log`; else on our stderr.

    Attributes:
        base: where everything of it lies.
        data: its directory.
        env: that is added for its processes.
        log: a file.
        up: its `sagacity up`; another one after `start_again`.
        stderr: where its processes log, a descriptor; None for ours.
        url: the router's address, where it began.
    """

    def __init__(
        self,
        base: Path | None = None,
        *,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        logs: bool = False,
    ) -> None:
        self._stack = ExitStack()
        if base is None:
            base = Path(tempfile.mkdtemp(prefix="sg-"))
            self._stack.callback(shutil.rmtree, base, ignore_errors=True)
        self.base, self.data, self.log = base, base / "data", base / "cluster.log"
        runtime = base / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        self.env = {"XDG_RUNTIME_DIR": str(runtime), "SAGACITY_LOG": "error", **(env or {})}
        self.stderr: int | None = None
        self._arguments = arguments
        self._logs = logs

    def __enter__(self) -> Self:
        with self._stack as stack:
            if self._logs:
                flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
                self.stderr = os.open(self.log, flags, 0o600)
                stack.callback(os.close, self.stderr)
            self.up = start_private(
                self.data, arguments=self._arguments, env=self.env, stderr=self.stderr
            )
            stack.callback(self._end)
            self.url = self.up.url
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def start_again(self) -> ClusterProcess:
        """Start it once more on its directory, after its end; it does not serve yet."""
        self.up.stop()
        self.up = ClusterProcess(self.data, env=self.env, stderr=self.stderr)
        return self.up

    def stop(self) -> int:
        """Stop it as its user would; give its exit code."""
        return self.up.stop()

    def _end(self) -> None:
        """End it; who was stopped by a signal must go on to hear of it."""
        processes.send(processes.of_cluster(self.data), signal.SIGCONT)
        if self.up.process.poll() is None:
            self.up.stop()
        processes.kill(processes.of_cluster(self.data))
