"""Peers of ours, measured on this machine.

    python -m bench.peers setup [PEER ...]       make their environments
    python -m bench.peers run PEER [--in-flight 64] [--sagas 1000] [--set key=value] [--json FILE]
    python -m bench.peers sweep PEER             find its best settings; run and table use them
    python -m bench.peers table [PEER ...] [--runs 5] [--json FILE]
    python -m bench.peers smoke                  set up all, 50 checkouts each

Peers: restate, dbos-postgres, dbos-sqlite, temporal; how each is used, and why: docs/peers.md.
Exit codes: 0; 1 a peer failed or its books do not balance, or what `table` asks of us is not met;
2 what was asked for cannot be done.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench.peers import ours, table
from bench.peers import sweep as sweeping
from bench.peers.dbos import DbosPostgres, DbosSqlite
from bench.peers.environment import FOLDER
from bench.peers.errors import PeerError, Refused
from bench.peers.measure import measure
from bench.peers.peer import Peer, Plan
from bench.peers.restate import Restate
from bench.peers.result import Result, Settings, words
from bench.peers.temporal import Temporal

PEERS: Final[tuple[Peer, ...]] = (Restate(), DbosPostgres(), DbosSqlite(), Temporal())
ALONE: Final = 200
SMOKE: Final = 50
DECLINE: Final = 10


def main(argv: list[str] | None = None) -> int:
    """Do what is asked; give the exit code."""
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    commands: dict[str, Callable[[argparse.Namespace], int | None]] = {
        "setup": _setup,
        "run": _run,
        "sweep": _sweep,
        "table": _table,
        "smoke": _smoke,
    }
    try:
        return commands[args.command](args) or 0
    except PeerError as error:
        print(f"python -m bench.peers: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def chosen(names: list[str]) -> list[Peer]:
    """Give the peers of these names; all of them without any.

    Raises:
        Refused: there is no such peer.
    """
    known = {peer.name: peer for peer in PEERS}
    for name in names:
        if name not in known:
            raise Refused(f"there is no peer {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(PEERS)


def setting(text: str) -> tuple[str, int | str]:
    """Read `key=value`.

    Raises:
        Refused: it is none.
    """
    key, equals, value = text.partition("=")
    if not key or not equals or not value:
        raise Refused(f"--set takes key=value, not {text!r}")
    return key, int(value) if value.lstrip("-").isdigit() else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("setup", "run", "sweep", "table", "smoke"):
        command = commands.add_parser(name, allow_abbrev=False)
        many = {"nargs": "*"} if name in ("setup", "table", "smoke") else {}
        command.add_argument("peer", **many)  # type: ignore[arg-type]  # by name
        command.add_argument("--envs", type=Path, default=FOLDER, help="folder of environments")
        if name == "setup":
            continue
        command.add_argument("--data", type=Path, help="where runs put their data; TMPDIR")
        command.add_argument("--port", type=_port, help="first of a row of ports on 127.0.0.1")
        command.add_argument("--decline", type=_percent, default=DECLINE, help="per cent")
        command.add_argument("--sagas", type=_count, help="of a run")
        command.add_argument("--json", type=Path, help="a new file that takes the result")
    commands.choices["run"].add_argument("--in-flight", type=_count)
    commands.choices["run"].add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    commands.choices["table"].add_argument("--runs", type=_count, default=5)
    commands.choices["table"].add_argument("--our-sagas", type=_count, default=ours.SAGAS)
    commands.choices["table"].add_argument("--alone", type=_count, default=ALONE)
    return parser


def _setup(args: argparse.Namespace) -> None:
    for peer in chosen(args.peer):
        environment = peer.environment(args.envs)
        peer.set_up(environment)
        print(f"{peer.name}: {environment.folder}, {words(peer.versions(environment))}", flush=True)


def _run(args: argparse.Namespace) -> None:
    (peer,) = chosen([args.peer])
    given = dict(setting(text) for text in args.set)
    best = sweeping.load(args.envs, peer)
    file = _new_file(args.json)
    result = _measured(
        args, peer, {**best.settings, **given}, args.in_flight or best.in_flight, args.decline
    )
    _show(result)
    _write(file, result.json())


def _sweep(args: argparse.Namespace) -> None:
    (peer,) = chosen([args.peer])
    file = _new_file(args.json)
    results: list[dict[str, Any]] = []

    def run(settings: Settings, in_flight: int) -> Result:
        result = _measured(args, peer, settings, in_flight, args.decline)
        results.append(result.json())
        return result

    start = sweeping.Best(dict(peer.best), peer.in_flight)
    best = sweeping.sweep(peer, start, run, _tell)
    kept = sweeping.save(args.envs, peer, best)
    print(f"best: {words(best.settings)} at {best.in_flight} in flight; kept in {kept}")
    _write(file, results)


def _table(args: argparse.Namespace) -> int:
    peers = chosen(args.peer)
    file = _new_file(args.json)
    for peer in peers:
        peer.environment(args.envs).check()

    def both(peer: Peer) -> Callable[[], tuple[Result, Result]]:
        best = sweeping.load(args.envs, peer)
        return lambda: (
            _measured(args, peer, best.settings, best.in_flight, args.decline),
            _measured(args, peer, best.settings, 1, 0, args.alone),
        )

    found: list[table.Round] = []
    titles = {peer.name: peer.title for peer in peers}
    try:
        table.rounds(
            args.runs,
            lambda: ours.measure(args.our_sagas, args.alone),
            {peer.name: both(peer) for peer in peers},
            _tell,
            found,
        )
    finally:
        if found:
            print(table.markdown(found, titles))
        if len(found) < args.runs:
            print(f"partial: {len(found)} of {args.runs} runs", flush=True)
        _write(file, table.json(found))
    return table.judged(found, titles).end()


def _smoke(args: argparse.Namespace) -> None:
    file = _new_file(args.json)
    _setup(args)
    results = []
    for peer in chosen(args.peer):
        result = _measured(args, peer, dict(peer.best), 8, args.decline, args.sagas or SMOKE)
        _show(result)
        results.append(result.json())
    _write(file, results)


def _measured(
    args: argparse.Namespace,
    peer: Peer,
    settings: Settings,
    in_flight: int,
    decline: int,
    sagas: int | None = None,
) -> Result:
    count = sagas or args.sagas or peer.sagas
    plan = Plan(count, max(in_flight, count // 10), in_flight, decline, args.port)
    return measure(peer, peer.environment(args.envs), plan, settings, args.data)


def _show(result: Result) -> None:
    print(result.line())
    print(f"  read back: {words(result.durability)}; data on {result.data_fs}")
    for example in result.error_examples:
        print(f"  {example}")
    sys.stdout.flush()


def _tell(line: str) -> None:
    print(line, flush=True)


def _new_file(file: Path | None) -> Path | None:
    """See that a result can be written, before anything runs."""
    if file is not None and file.exists():
        raise Refused(f"{file} exists: results are not overwritten")
    if file is not None and not file.absolute().parent.is_dir():
        raise Refused(f"{file.absolute().parent} is no folder")
    return file


def _write(file: Path | None, shown: object) -> None:
    if file is not None:
        file.write_text(json.dumps(shown, indent=1) + "\n")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _percent(text: str) -> int:
    if not text.isdigit() or int(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 100")
    return int(text)


def _port(text: str) -> int:
    if not text.isdigit() or not 1024 <= int(text) <= 65000:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 1024 to 65000")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
