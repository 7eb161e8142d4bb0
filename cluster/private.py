"""A cluster of one's own: `sagacity up` as a child, for the Maelstrom node, demo, bench and tests.

Other commands do not find it, and it stops when the thread that started it ends. Knows the command
line of `up` and the line that it prints; imports nothing heavy, so that starting costs little.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from sagacity.errors import Conflict, InternalError, Malformed, NoOutcome, SagacityError

_LINE_BYTES_MAX: Final = 64 << 10
_BY_EXIT_CODE: Final[dict[int, type[SagacityError]]] = {
    Malformed.exit_code: Malformed,
    Conflict.exit_code: Conflict,
}
_STOP_S: Final = 15.0  # the drain's 10 s, 2 s more, and some


class ClusterProcess:
    """A private cluster. `with start_private() as cluster: Client(cluster.url)`.

    Attributes:
        pid: of the supervisor.
        url: the router's address, once ready; so `metrics`.
        metrics: URL of the supervisor's metrics; /sd and /healthz are beside it.
        data: path of the data directory.
        process: the supervisor, for who wants to kill it.
        ready_fd: readable when `read_ready` has something to read; for a poller.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stderr: int | None = None,
    ) -> None:
        self._made = data is None
        self.data = Path(tempfile.mkdtemp(prefix="sagacity-")) if data is None else data.absolute()
        self.url = ""
        self.metrics = ""
        self._line = b""
        command = [sys.executable, "-P", "-m", "cluster", "up", "--json", "--private"]
        command += ["--parent", str(os.getpid()), "--data", str(self.data), *arguments]
        if self._made:
            command.append("--temporary")
        self.ready_fd, said = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.process = subprocess.Popen(  # noqa: S603 - no shell, and the command is our own
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=stderr,
                # Loading the logger costs each process 60 ms; who owns it wants the faults alone.
                env={"SAGACITY_LOG": "warning", **os.environ, **(env or {})},
                process_group=0,  # a terminal's SIGINT is for who owns the cluster
            )
        except BaseException:
            self._forget()
            raise
        finally:
            os.close(said)
        self.pid = self.process.pid

    def __enter__(self) -> "ClusterProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def ready(self) -> bool:
        """Whether it has said that it serves."""
        return bool(self.url)

    def read_ready(self) -> bool:
        """Read what it has said so far, without waiting; say whether it is ready.

        Raises:
            SagacityError: it has ended instead; its own words are on stderr. The exit code is its.
        """
        while not self.url:
            try:
                read = os.read(self.ready_fd, _LINE_BYTES_MAX)
            except BlockingIOError:
                return False
            if not read:
                raise self._ended()
            self._line += read
            if b"\n" in self._line:
                line: dict[str, Any] = json.loads(self._line)
                self.url, self.metrics = line["router"], line["metrics"]
        return True

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until it serves.

        Raises:
            SagacityError: it has ended instead, or does not serve in time.
        """
        give_up = time.monotonic() + timeout_s
        while not self.read_ready():
            left_s = give_up - time.monotonic()
            if left_s <= 0:
                raise NoOutcome(f"the cluster did not serve within {timeout_s:g} s")
            select.select([self.ready_fd], [], [], left_s)

    def stop(self, timeout_s: float = _STOP_S) -> int:
        """Drain and stop it, then remove its directory if that was made for it.

        Returns:
            Its exit code; -9 if it had to be killed.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._forget()
        return code

    def _ended(self) -> SagacityError:
        code = self.process.wait()
        error = _BY_EXIT_CODE.get(code, InternalError)
        return error(f"the cluster did not start (exit code {code}); its own words are above")

    def _forget(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1
        if self._made:
            shutil.rmtree(self.data, ignore_errors=True)


def start_private(
    data: Path | None = None,
    *,
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    stderr: int | None = None,
    timeout_s: float = 30.0,
) -> ClusterProcess:
    """Start a cluster and wait until it serves.

    Args:
        data: its directory, kept; None for a temporary one that is removed when it stops.
        arguments: more flags of `up`, such as "--shards", "4".
        env: more environment, such as SAGACITY_LOG, which is "warning" where nobody says it.
        stderr: where its log goes, as `subprocess` takes it; inherited if left out.
        timeout_s: for it to serve.

    Raises:
        SagacityError: it does not start.
    """
    cluster = ClusterProcess(data, arguments=arguments, env=env, stderr=stderr)
    try:
        cluster.wait_ready(timeout_s)
    except BaseException:
        cluster.stop()
        raise
    return cluster
