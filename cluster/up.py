"""`sagacity up`: a whole cluster on this machine. The composition root of the supervisor.

Knows every command line, flag and directory; decides nothing about processes. Who wants a cluster
of their own runs it as a child: see `cluster.private`.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from cluster.child import die_with
from cluster.clock import SystemClock
from cluster.directory import DataDirectory, RunDirectory, Running
from cluster.fleet import AUDITOR, ROUTER, SHARD, SUPERVISOR, Fleet, Patience
from cluster.meters import SupervisorMeters
from cluster.metrics import WORKER
from cluster.supervisor import Supervisor
from cluster.telemetry import Log, MetricsServer, PortTaken, configure_logging
from config.load import imported, load, load_catalog, load_sagas, require_pools
from config.schema import Config
from sagacity.errors import Malformed
from sagacity.saga import Saga
from sagacity.sockets import LIBZMQ_VERSION, context
from sagacity.versions import refuse_known_bad
from sagacity.wire import MSGPACK_VERSION

_BUILT_IN: Final = "built-in"  # source of a setting that nobody chose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `up` (SPEC 6)."""
    parser.add_argument("--data", metavar="DIR", help="journals and databases")
    parser.add_argument("--shards", type=int, metavar="N", help="journals, in a new directory")
    parser.add_argument("--workers", type=int, metavar="N", help="processes of each service")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML")
    parser.add_argument("--port", type=_port, metavar="P", help="the router's, on 127.0.0.1")
    parser.add_argument("--metrics-port", type=_port, metavar="P", help="for /metrics and /sd")
    parser.add_argument(
        "--accept-data-loss",
        action="store_true",
        help="go on with journals or databases that are old copies; see what was lost by audit",
    )
    parser.add_argument("--json", action="store_true", help="print one line when it serves")
    # For a cluster that belongs to another process: not found by other commands, ends with it.
    parser.add_argument("--private", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--temporary", action="store_true", help=argparse.SUPPRESS)


def run_up(args: argparse.Namespace) -> int:
    """Run a cluster until SIGTERM or SIGINT.

    Returns:
        0.

    Raises:
        SagacityError: as SPEC 4 and 6 say; no process is left, nothing is half-written.
    """
    if args.parent is not None:
        die_with(args.parent, signal.SIGTERM)
    os.umask(0o077)  # files say their mode themselves; sockets cannot, and children inherit this
    # What can be wrong before anything is made, is found before anything is made.
    refuse_known_bad({"libzmq": LIBZMQ_VERSION, "msgpack": MSGPACK_VERSION})
    log = configure_logging(SUPERVISOR, 0)
    config, sagas = _configured(args)
    if args.port is not None:
        _require_free(args.port)
    with ExitStack() as stack:
        data = DataDirectory(config.supervisor.data)
        meters = SupervisorMeters([ROUTER, SHARD, AUDITOR, *config.services.pools])
        routes = _Routes()
        server = MetricsServer(meters, routes.table())
        metrics_port = _serve_metrics(server, config, private=args.private)
        stack.callback(server.stop)
        if args.temporary:
            stack.callback(shutil.rmtree, data.path, ignore_errors=True)
        stack.callback(data.lock().release)
        shards_chosen = config.sources["cluster.shards"] != _BUILT_IN
        named = sorted((saga.name, saga.version) for saga in sagas)
        cluster = data.open_or_create(config.cluster.shards, insist=shards_chosen, sagas=named)
        run = RunDirectory.of(cluster.cluster_id)
        stack.callback(run.lock().release)
        stack.callback(run.remove)

        said = Running(
            pid=os.getpid(),
            router=_url(args, run),
            metrics=f"http://127.0.0.1:{metrics_port}/metrics",
            data=str(data.path),
            cluster_id=cluster.cluster_id,
            kind="private" if args.private else "up",
        )
        ctx = context()
        stack.callback(ctx.term)
        supervisor = Supervisor(
            _commands(args, config, data, run, cluster.shards, log),
            run,
            SystemClock(),
            ctx,
            patience=_patience(config),
            drain_ms=config.supervisor.drain_ms,
            about={
                "cluster_id": cluster.cluster_id,
                "router": said.router,
                "metrics": said.metrics,
                "data": said.data,
            },
            meters=meters,
            log=log,
            before_router=None if list(cluster.sagas) == named else lambda: data.name(named),
        )
        stack.callback(supervisor.close)
        supervisor.metrics_port = metrics_port
        supervisor.start_due()
        routes.fleet, routes.metrics_port = supervisor.fleet, metrics_port
        run.announce(said)
        supervisor.run(lambda: _say_ready(said, as_json=args.json))
    return 0


class _Routes:
    """What the metrics server serves beside /metrics; called in its threads."""

    def __init__(self) -> None:
        self.fleet: Fleet | None = None
        self.metrics_port = 0

    def table(self) -> Mapping[str, Any]:
        """Give the paths."""
        return {"/sd": self.targets, "/healthz": self.health}

    def targets(self) -> tuple[int, str, bytes]:
        """Serve Prometheus' HTTP service discovery: every process that serves metrics."""
        found = [_target(self.metrics_port, role=SUPERVISOR)]
        members = [] if self.fleet is None else self.fleet.running()
        for member in members:
            if not member.metrics_port:
                continue
            index = str(member.index)
            if member.role in {ROUTER, AUDITOR}:
                found.append(_target(member.metrics_port, role=member.role))
            elif member.role == SHARD:
                found.append(_target(member.metrics_port, role=SHARD, shard=index))
            else:
                found.append(
                    _target(member.metrics_port, role=WORKER, service=member.role, index=index)
                )
        return 200, "application/json", json.dumps(found).encode()

    def health(self) -> tuple[int, str, bytes]:
        """Serve 200 while the cluster serves, else 503."""
        if self.fleet is not None and self.fleet.ready():
            return 200, "text/plain", b"ready\n"
        return 503, "text/plain", b"not ready\n"


def _target(port: int, **labels: str) -> dict[str, Any]:
    return {"targets": [f"127.0.0.1:{port}"], "labels": labels}


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"a port is 1..65535, not {port}")
    return port


def _configured(args: argparse.Namespace) -> tuple[Config, list[Saga]]:
    """Give the configuration and its sagas; whatever the children would refuse is refused here."""
    flags = {
        "cluster.shards": args.shards,
        "services.workers": args.workers,
        "supervisor.data": args.data,
        "supervisor.metrics_port": args.metrics_port,
    }
    config = load(args.config, flags=flags)
    load_catalog(config.cluster.catalog)
    sagas = load_sagas(config)
    require_pools(config, sagas)
    return config, sagas


def _patience(config: Config) -> Patience:
    return Patience(
        restart_ms=config.supervisor.restart_ms,
        restart_max_ms=config.supervisor.restart_max_ms,
        quarantine_exits=config.supervisor.quarantine_exits,
        quarantine_within_ms=config.supervisor.quarantine_within_ms,
        worker_hung_ms=config.supervisor.worker_hung_ms,
        shard_silent_ms=config.supervisor.shard_silent_ms,
    )


def _require_free(port: int) -> None:
    """Refuse a taken port before anything is written; the router finds out for certain."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            raise Malformed(f"the router cannot listen on port {port}: {error.strerror}") from None


def _serve_metrics(server: MetricsServer, config: Config, *, private: bool) -> int:
    """Listen on the port that was asked for, else on the usual one or a free one."""
    wanted = config.supervisor.metrics_port
    if config.sources["supervisor.metrics_port"] != _BUILT_IN:
        return server.start(wanted)
    if private:
        return server.start(0)
    try:
        return server.start(wanted)
    except PortTaken:
        port = server.start(0)
        print(f"port {wanted} is taken: metrics are on port {port}", file=sys.stderr)  # noqa: T201 - what `up` says
        return port


def _url(args: argparse.Namespace, run: RunDirectory) -> str:
    """Give the router's address."""
    return run.router if args.port is None else f"tcp://127.0.0.1:{args.port}"


def is_audited(config: Config, *, private: bool) -> bool:
    """Say whether the books shall be audited continuously; of a private cluster when asked for."""
    asked = config.sources["supervisor.books_every_ms"] != _BUILT_IN
    return config.supervisor.books_every_ms > 0 and (asked or not private)


def unaudited(config: Config) -> tuple[str, str] | None:
    """Give a service that does not give what an audit reads, and what it lacks; None: all do.

    Raises:
        Malformed: a service cannot be imported, as its workers would say.
    """
    from cluster.rounds import TABLES  # noqa: PLC0415 - and SQLite, which nothing else here needs

    for name, tables in TABLES.items():
        place = config.services.pools.get(name)
        if place is None:
            return name, "it has no pool"
        service = imported(place, f"services.pools.{name} = {place!r}")
        lacking = tables - set(getattr(service, "audited", ()))
        if lacking:
            return name, f"its Service.audited has no {', '.join(sorted(lacking))}"
    return None


def _commands(
    args: argparse.Namespace,
    config: Config,
    data: DataDirectory,
    run: RunDirectory,
    shards: int,
    log: Log,
) -> dict[tuple[str, int], list[str]]:
    """Give the command line of every process."""
    common = ["--data", str(data.path), "--run", str(run.path), "--parent", str(os.getpid())]
    if args.config is not None:
        common += ["--config", str(args.config.absolute())]
    port = [] if args.port is None else ["--port", str(args.port)]

    def python(module: str, *flags: str) -> list[str]:
        # -P: a services/ in the working directory must not shadow ours.
        return [sys.executable, "-P", "-m", module, *common, *flags]

    accepts = ["--accept-data-loss"] if args.accept_data_loss else []

    commands = {(ROUTER, 0): python("router", *port)}
    for index in range(shards):
        commands[SHARD, index] = python("shard", "--index", str(index), *accepts)
    for name in config.services.pools:
        for index in range(config.services.workers):
            place = ("--service", name, "--index", str(index))
            commands[name, index] = python("services", *place, *accepts)
    if is_audited(config, private=args.private):
        lacking = unaudited(config)
        if lacking is None:
            where = ("--index", "0", "--router", _url(args, run))
            commands[AUDITOR, 0] = python("cluster.auditor", *where)
        else:
            log.info("books_not_audited", service=lacking[0], reason=lacking[1])
    return commands


def _say_ready(said: Running, *, as_json: bool) -> None:
    if as_json:
        line = {
            "ready": True,
            "router": said.router,
            "metrics": said.metrics,
            "data": said.data,
            "pid": said.pid,
        }
        text = json.dumps(line)
    else:
        text = (
            "Sagacity serves. Ctrl-C drains and stops it.\n"
            f"  router   {said.router}\n  metrics  {said.metrics}\n  data     {said.data}"
        )
    with suppress(OSError):  # whoever wanted to read it has gone; the cluster serves all the same
        print(text, flush=True)  # noqa: T201 - this is what `up` says on stdout
