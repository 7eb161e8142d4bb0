"""Telemetry: what a process says about itself. Log lines as JSON on stderr, metrics over HTTP.

What is counted stands in `metrics` and `meters`; this room logs, renders and serves. structlog,
http.server and prometheus_client (some 100, 60 and 120 ms) are loaded when they are first needed:
by the first line that is not filtered, the first connection, and the first scrape. No global
setting of theirs, nor of `logging`, is touched.
"""

import errno
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cluster.meters import Durations, Meters
from cluster.metrics import COUNTER
from sagacity.errors import InternalError, InvariantBroken, Malformed, places

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

LINES_MAX: Final = 100  # of one event in one window; a fault a command must not fill a disk
WINDOW_S: Final = 10.0


class RateLimit:
    """How many lines of one event are written; those that are not are counted.

    Args:
        lines_max: in one window.
        window_s: from an event's first line in it.
    """

    def __init__(self, lines_max: int = LINES_MAX, window_s: float = WINDOW_S) -> None:
        self._lines_max = lines_max
        self._window_s = window_s
        self._windows: dict[str, tuple[float, int]] = {}  # event -> its end, lines asked for in it

    def admit(self, event: str, now_s: float) -> int | None:
        """Take note of a line.

        Args:
            event: its name, of a closed list.
            now_s: monotonic.

        Returns:
            None for a line that is held back; else how many were, before it.
        """
        end, asked = self._windows.get(event, (now_s, 0))
        if now_s < end:
            self._windows[event] = (end, asked + 1)
            return 0 if asked < self._lines_max else None
        self._windows[event] = (now_s + self._window_s, 1)
        return max(0, asked - self._lines_max)


class _Root:
    """What all loggers of a process share."""

    def __init__(self) -> None:
        self.limit = RateLimit()
        self.level = _LEVELS["info"]
        self.fields: dict[str, object] = {}
        self.lock = threading.Lock()
        self.lines: Any = None  # structlog's logger, once there was a line


_root = _Root()


class Log:
    """Events in the past tense, with fields: `log.info("step_compensated", step="ChargePayment")`.

    A filtered event costs a comparison. A line that cannot be written is lost: nobody dies of it.
    Of one event LINES_MAX lines are written in WINDOW_S, at level debug all; the next one says how
    many were `held_back`.

    Args:
        fields: stand in every line of this logger.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[str, object]) -> None:
        self._fields = fields

    @property
    def tells_debug(self) -> bool:
        """Whether lines at level debug are written."""
        return _root.level <= 10

    def bind(self, **fields: object) -> "Log":
        """Give a logger with more fields in every line."""
        return Log({**self._fields, **fields})

    def debug(self, event: str, **fields: object) -> None:
        """For who looks for a mistake; per saga, too."""
        if _root.level <= 10:
            self._write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """What an operator wants to know; nothing per saga."""
        if _root.level <= 20:
            self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """What an operator should look at some day."""
        if _root.level <= 30:
            self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """What somebody has to look at; `exc_info=True` adds the traceback."""
        self._write("error", event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._write("error", event, {"exc_info": True, **fields})

    def bug(self, error: BaseException) -> None:
        """What ends a process and should not be: its type and places.

        The words of a broken invariant are ours; any other's may quote what a client has sent.
        """
        words = {"text": str(error)} if isinstance(error, InvariantBroken) else {}
        self.error("bug_found", error=type(error).__name__, at=places(error), **words)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if level != "debug":
            with _root.lock:
                held = _root.limit.admit(event, time.monotonic())
            if held is None:
                return
            if held:
                fields = {**fields, "held_back": held}
        try:
            getattr(_lines(), level)(event, **{**_root.fields, **self._fields, **fields})
        except (OSError, ValueError):  # stderr is gone or closed
            return


def configure_logging(role: str, index: int) -> Log:
    """Have every line of this process carry its role, index and pid; give its logger.

    The level comes from the environment's SAGACITY_LOG: debug, info (the default), warning, error.

    Raises:
        Malformed: SAGACITY_LOG is something else.
    """
    text = os.environ.get("SAGACITY_LOG", "").lower() or "info"
    if text not in _LEVELS:
        raise Malformed(f"SAGACITY_LOG is one of {', '.join(_LEVELS)}, not {text!r}")
    _root.level = _LEVELS[text]
    _root.fields = {"role": role, "index": index, "pid": os.getpid()}
    _root.lines = None
    _root.limit = RateLimit()
    return get_logger()


def get_logger(**fields: object) -> Log:
    """Give a logger; it may be asked for before `configure_logging`."""
    return Log(fields)


def guarded(main: Callable[[], int]) -> int:
    """Run a process; what ends it and should not be is a line of its log, as everything it says.

    Returns:
        Its exit code.
    """
    try:
        return main()
    except (InvariantBroken, Exception) as error:
        get_logger().bug(error)
        return InternalError.exit_code


def _lines() -> Any:
    """Give structlog's logger; the first call loads it."""
    with _root.lock:
        if _root.lines is None:
            import structlog  # noqa: PLC0415 - about 100 ms, see above

            _root.lines = structlog.wrap_logger(
                structlog.WriteLogger(sys.stderr),
                processors=[
                    structlog.processors.add_log_level,
                    structlog.processors.TimeStamper(fmt="iso", utc=True),
                    structlog.processors.format_exc_info,
                    structlog.processors.JSONRenderer(),
                ],
                wrapper_class=structlog.make_filtering_bound_logger(_root.level),
            ).bind()
        return _root.lines


def render(meters: Meters) -> bytes:
    """Give a process's metrics in Prometheus' text format 0.0.4; any thread may."""
    from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - see above

    registry: Any = _Collector(meters)
    return generate_latest(registry)


class _Collector:
    """What prometheus_client asks for families of samples: reads the holders."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters

    def collect(self) -> Iterator[Any]:
        """Give one family for each metric."""
        from prometheus_client import metrics_core as core  # noqa: PLC0415 - see above

        for holder in self._meters.holders():
            metric = holder.metric
            family: Any
            if isinstance(holder, Durations):
                edges = [repr(edge / metric.scale) for edge in metric.edges] + ["+Inf"]
                family = core.HistogramMetricFamily(
                    metric.name, metric.help, labels=metric.label_names
                )
                for labels, (counts, total) in holder.read().items():
                    family.add_metric(labels, _cumulated(edges, counts), total / metric.scale)
            else:
                made = (
                    core.CounterMetricFamily if metric.kind == COUNTER else core.GaugeMetricFamily
                )
                family = made(metric.name, metric.help, labels=metric.label_names)
                for labels, value in holder.read().items():
                    family.add_metric(labels, value)
            yield family


def _cumulated(edges: list[str], counts: list[int]) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for edge, count in zip(edges, counts, strict=True):
        total += count
        buckets.append((edge, total))
    return buckets


class PortTaken(Malformed):
    """Another program listens on the port that was asked for.

    Args:
        port: on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} on 127.0.0.1 is taken by another program")
        self.port = port
        self.errno = errno.EADDRINUSE


Route = Callable[[], tuple[int, str, bytes]]  # -> HTTP status, content type, content


class MetricsServer:
    """Serves /metrics on 127.0.0.1, in a thread of its own that ends with the process.

    Args:
        meters: of this process.
        routes: more paths, such as /healthz; called in the server's threads.
    """

    def __init__(self, meters: Meters, routes: Mapping[str, Route] | None = None) -> None:
        self._routes: dict[str, Route] = {
            "/metrics": lambda: (200, "text/plain; version=0.0.4; charset=utf-8", render(meters)),
            **(routes or {}),
        }
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._stopping = False

    def start(self, port: int = 0) -> int:
        """Listen.

        Args:
            port: 0 for any free one.

        Returns:
            The port.

        Raises:
            PortTaken: another program listens there.
            Malformed: this user may not listen there.
        """
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(16)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(port) from None
            raise Malformed(f"cannot listen on port {port}: {error.strerror}") from None
        bound: int = listener.getsockname()[1]
        self._listener = listener
        self._thread = threading.Thread(
            target=self._serve, args=(listener,), name="metrics", daemon=True
        )
        self._thread.start()
        return bound

    def stop(self) -> None:
        """Stop listening; nothing happens where it did not."""
        if self._thread is None or self._listener is None:
            return
        self._stopping = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._thread = None

    def _serve(self, listener: socket.socket) -> None:
        # What serves it takes some 60 ms to load, and ten processes start at once: not before use.
        select.select([listener], [], [])
        if self._stopping:
            listener.close()
            return
        # Not serve_forever, which wakes twice a second to see whether it should stop.
        with _http_server(listener, self._routes) as server:
            while not self._stopping:
                server.handle_request()


def _http_server(listener: socket.socket, routes: Mapping[str, Route]) -> "ThreadingHTTPServer":
    """Give a server on a socket that listens already."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # noqa: PLC0415 - see above

    class Handler(BaseHTTPRequestHandler):
        """Answers GET; says nothing on stderr."""

        timeout = 5  # seconds for a request to come in

        def do_GET(self) -> None:
            """Answer."""
            status, kind, content = _answer(routes.get(self.path.partition("?")[0]))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Scrapes are no news."""

    class Server(ThreadingHTTPServer):
        """Says nothing on stderr when a scraper goes away in the middle."""

        def handle_error(self, *_: object) -> None:
            """The connection is closed; that is all."""

    server = Server(listener.getsockname(), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    return server


def _answer(route: Route | None) -> tuple[int, str, bytes]:
    if route is None:
        return 404, "text/plain", b"not here\n"
    try:
        return route()
    except Exception:
        get_logger().exception("scrape_failed")
        return 500, "text/plain", b"failed; see the log\n"
