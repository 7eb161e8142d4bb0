"""Prometheus on a cluster of this machine: started with our configuration, asked, ended.

Knows the program's flags and its HTTP API, and what config/prometheus/prometheus.yml says that is
different here: the cluster's address, and where the rules lie. Rules and alerts are the very files.
"""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from cluster.child import die_with
from cluster.telemetry import PortTaken
from config import schema
from sagacity.errors import Malformed, NoOutcome

PROGRAM: Final = "prometheus"
PORT: Final = 9090
FILES: Final = Path(schema.__file__).parent / "prometheus"
RULES: Final = ("rules.yml", "alerts.yml")

_SD: Final = "http://127.0.0.1:9464/sd"  # as the file has it
_READY_S: Final = 30.0
_STOP_S: Final = 10.0
_ANSWER_S: Final = 30.0
_LOOK_S: Final = 0.05
_LOG_LINES: Final = 5


class NoPrometheus(Malformed):
    """It cannot be run here; the text says what to do."""


class Series(NamedTuple):
    """What a query gives: labels, and values by their instants, seconds since 1970."""

    labels: dict[str, str]
    points: list[tuple[float, float]]


def find() -> str:
    """Give the program's path.

    Raises:
        NoPrometheus: it is not there.
    """
    found = shutil.which(PROGRAM)
    if found is None:
        raise NoPrometheus(
            f"{PROGRAM} is not there. On Debian and Ubuntu: apt-get install prometheus. Elsewhere: "
            "put the program of prometheus.io/download on the PATH"
        )
    return found


def free_port(port: int) -> int:
    """Give a port that nobody listens on: this one; for 0, any.

    Raises:
        PortTaken: somebody listens on it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            raise PortTaken(port) from None
        found: int = trial.getsockname()[1]
        return found


def configured(metrics_url: str) -> str:
    """Give prometheus.yml for one cluster, to lie anywhere.

    Args:
        metrics_url: as the cluster says it; /sd is beside it.
    """
    text = (FILES / "prometheus.yml").read_text()
    changes = {_SD: f"{metrics_url.removesuffix('/metrics')}/sd"}
    changes |= {f"- {name}\n": f"- {FILES / name}\n" for name in RULES}
    for old, new in changes.items():
        if text.count(old) != 1:
            raise NoPrometheus(f"{FILES / 'prometheus.yml'} does not say {old.strip()} once")
        text = text.replace(old, new)
    return text


class Prometheus:
    """A Prometheus that watches one cluster. A context: it runs in the block, and leaves no file.

    It ends with the thread that started it, however that ends.

    Args:
        metrics_url: of the cluster, as it says it when it serves.
        port: to listen on, on 127.0.0.1; 0 for any free one.

    Attributes:
        url: where it listens.
        process: itself.
    """

    def __init__(self, metrics_url: str, port: int = 0) -> None:
        self._program = find()
        self._port = free_port(port)
        self._config = configured(metrics_url)
        self._stack = ExitStack()
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            base = Path(tempfile.mkdtemp(prefix="sagacity-prometheus-"))
            stack.callback(shutil.rmtree, base, ignore_errors=True)
            (base / "prometheus.yml").write_text(self._config)
            with open(base / "log", "wb") as log:
                self.process = subprocess.Popen(  # noqa: S603 - no shell, and the command is our own
                    [
                        self._program,
                        f"--config.file={base / 'prometheus.yml'}",
                        f"--storage.tsdb.path={base / 'series'}",
                        f"--web.listen-address=127.0.0.1:{self._port}",
                        "--log.level=warn",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,  # a terminal's SIGINT is for who started it
                    preexec_fn=partial(die_with, os.getpid(), signal.SIGKILL),  # noqa: PLW1509 - no lock is held there
                )
            stack.callback(self._stop)
            self._wait_ready(base / "log")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    # -- asking -----------------------------------------------------------------------------------

    def now(self, expr: str, at: float | None = None) -> list[Series]:
        """Run a query for one instant.

        Args:
            expr: PromQL that gives a vector.
            at: the instant, seconds since 1970; now if left out.
        """
        asked = {"query": expr} if at is None else {"query": expr, "time": f"{at:.3f}"}
        rows = self._ask("query", **asked)["result"]
        return [Series(row["metric"], [_point(row["value"])]) for row in rows]

    def over(self, expr: str, begin: float, end: float, step_s: float) -> list[Series]:
        """Run a query for each step between two instants."""
        span = {"start": f"{begin:.3f}", "end": f"{end:.3f}", "step": f"{step_s:g}"}
        rows = self._ask("query_range", query=expr, **span)["result"]
        return [Series(row["metric"], [_point(point) for point in row["values"]]) for row in rows]

    def rules(self) -> list[dict[str, Any]]:
        """Give every rule and alert as it says them: name, type, health, lastError, alerts."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def alerts(self) -> set[tuple[str, str, str]]:
        """Give name, severity and state (pending, firing) of the alerts whose condition holds."""
        found = self._ask("alerts")["alerts"]
        return {
            (each["labels"]["alertname"], each["labels"]["severity"], each["state"])
            for each in found
        }

    def firing(self) -> set[tuple[str, str]]:
        """Give name and severity of the alerts that fire now."""
        return {(name, severity) for name, severity, state in self.alerts() if state == "firing"}

    def scraped(self) -> int:
        """Give how many processes were scraped well the last time."""
        return sum(each["health"] == "up" for each in self._ask("targets")["activeTargets"])

    def graph(self, expr: str) -> str:
        """Give the address of a page that draws a query."""
        asked = {"g0.expr": expr, "g0.tab": 0, "g0.range_input": "15m"}
        return f"{self.url}/graph?{urllib.parse.urlencode(asked)}"

    def _ask(self, what: str, **asked: str) -> Any:
        body = urllib.parse.urlencode(asked).encode() if asked else None
        try:
            with urllib.request.urlopen(  # noqa: S310 - the address is our own
                f"{self.url}/api/v1/{what}", body, timeout=_ANSWER_S
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise Malformed(f"{PROGRAM} refused {asked or what}: {said}") from None
        except OSError as error:
            raise NoOutcome(f"{PROGRAM} does not answer: {error}") from None

    # -- its life ---------------------------------------------------------------------------------

    def _wait_ready(self, log: Path) -> None:
        give_up = time.monotonic() + _READY_S
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                said = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                raise NoPrometheus("\n".join([f"{PROGRAM} ended at its start:", *said]))
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=_ANSWER_S):  # noqa: S310 - the address is our own
                    return
            except OSError:
                time.sleep(_LOOK_S)
        raise NoOutcome(f"{PROGRAM} was not ready within {_READY_S:g} s")

    def _stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _point(row: list[Any]) -> tuple[float, float]:
    at, value = row
    return float(at), math.inf if value == "+Inf" else float(value)
