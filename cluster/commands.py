"""The commands that ask a cluster: checkout, show, list, cancel, retry, status, audit (SPEC 6).

Each has its options beside it. Data goes to stdout, talk to stderr; an error of the one table
(SPEC 4) is raised, and with --json its body is printed too. Knows no socket but the client's.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster import render, requests, story, storypage, verifying
from cluster.audit import audit as audit_books
from cluster.directory import DataDirectory, find_running
from cluster.private import start_private
from cluster.whole import require_new, write_whole
from config import load as configuration
from sagacity import listing, wire
from sagacity.client import Client
from sagacity.errors import (
    EXIT_ABORTED,
    EXIT_COMPLETED,
    EXIT_UNBALANCED,
    Conflict,
    Malformed,
    NoOutcome,
    SagacityError,
    Stuck,
)
from sagacity.ids import check_saga_id, new_saga_id
from sagacity.traces import TRACEPARENT

READ_WAIT_S = 10.0  # who only reads need not wait as long as a saga may take
_ITEM = re.compile(r"([^=]*)=(-?[0-9]{1,18})")


def checkout_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `checkout`."""
    parser.add_argument("--user", required=True, metavar="U", help="who pays")
    parser.add_argument(
        "--item",
        required=True,
        action="extend",
        nargs="+",
        metavar="SKU=QTY",
        help="a line of the cart; may be repeated",
    )
    parser.add_argument("--address", required=True, metavar="A", help="where to ship")
    parser.add_argument("--id", metavar="ID", help="the saga's id: asked again, the same answer")
    parser.add_argument(
        "--traceparent",
        metavar="TP",
        help="the trace that it belongs to (W3C): given to the services' handlers, shown by `show`",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--no-wait", action="store_true", help="return as soon as the start is durable"
    )
    how.add_argument(
        "--trace", action="store_true", help="print every message that travelled, as JSON lines"
    )
    _common_arguments(parser)


def show_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `show`."""
    parser.description = (
        "Tell a saga on one page: its timeline, what was tried and why it failed, the money, why "
        "it ended so or where it stands, and what a person can do."
    )
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "--events", action="store_true", help="every event as a table, in place of the page"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write the page for a browser, all in one file"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    _common_arguments(parser)


def cancel_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cancel`."""
    parser.add_argument("id", metavar="ID")
    parser.add_argument("--reason", required=True, metavar="R", help="1 to 256 characters")
    _common_arguments(parser)


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `retry`."""
    parser.description = (
        "Ask a stuck saga's compensation again now, without waiting for its next attempt. The "
        "reason is kept in the saga's history."
    )
    parser.add_argument("id", metavar="ID")
    parser.add_argument("--reason", required=True, metavar="R", help="1 to 256 characters")
    _common_arguments(parser)


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `list`."""
    parser.description = (
        "List the sagas of all shards, newest first: by the instant at which they ended, or "
        "started if they have not."
    )
    parser.add_argument(
        "--status",
        action="append",
        default=[],
        metavar="S",
        help="running, compensating, stuck, completed or aborted; several with commas. "
        "A stuck saga is compensating, too",
    )
    parser.add_argument(
        "--since",
        metavar="T",
        help="only what ended since, or has not ended and started since: 15m, 2h, 7d ago, or an "
        "ISO time (local, where it names no zone)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=listing.LIMIT,
        metavar="N",
        help=f"how many at most; {listing.LIMIT} if left out, {listing.LIMIT_MAX} at most",
    )
    _common_arguments(parser)


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `status`."""
    _common_arguments(parser)


def audit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `audit`."""
    parser.description = (
        "Compare stock, money and shipments of the services with the journals. With --data, a "
        "stopped cluster is run for the audit, where no other command finds it: it takes no new "
        "saga and changes no outcome; sagas that had not ended go on, as after every start. "
        "Exit code 12 where the books do not balance."
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="of a stopped cluster: it is run for the audit"
    )
    _common_arguments(parser)


def journal_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands about journals."""
    verify = parser.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "verify",
        help="read the journals of a stopped cluster from end to end",
        description="Read every journal of a stopped cluster from its first row to its last: no "
        "row is missing, each is what was written, each can be read. Changes nothing in the "
        "directory. Exit code 2 where a journal is not what was written.",
        allow_abbrev=False,
    )
    verify.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="of a stopped cluster"
    )
    _json_argument(verify)


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands about the configuration."""
    show = parser.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "show",
        help="every key, its value, and who says so",
        description="Show the configuration that processes started here would have: built-in "
        "defaults, a file, the environment, each before what follows it. Exit code 2, with every "
        "fault, where it cannot be used.",
        allow_abbrev=False,
    )
    show.add_argument("--config", type=Path, metavar="FILE", help="TOML, as for `up`")
    _json_argument(show)


def _json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts: one line of JSON")


def _common_arguments(parser: argparse.ArgumentParser) -> None:
    _json_argument(parser)
    parser.add_argument(
        "--connect",
        metavar="URL",
        help="the router's address; else SAGACITY_URL, else the one cluster that runs here",
    )


def checkout(options: argparse.Namespace) -> int:
    """Check out."""
    with _errors_as_json(options.json):
        body = {
            "type": "checkout",
            "saga_id": new_saga_id() if options.id is None else options.id,
            "user_id": options.user,
            "items": [_item(text) for text in options.item],
            "shipping_address": options.address,
        }
        asked = requests.checkout(body, wire.SUBMIT if options.no_wait else wire.START)
        with Client(_url(options)) as client:
            if options.id is None:
                _say(f"saga_id: {asked.saga_id}")
            return _checkout(client, body, asked.saga_id, options)


def _checkout(
    client: Client, body: dict[str, Any], saga_id: str, options: argparse.Namespace
) -> int:
    begun = time.monotonic_ns()
    try:
        ask = client.submit if options.no_wait else client.start
        final = ask(body, {TRACEPARENT: options.traceparent} if options.traceparent else None)
    except Stuck:
        _say(f"{saga_id} is stuck; see: sagacity show {saga_id}")
        raise
    except NoOutcome:
        _say(f"no outcome yet; ask again with the same id: --id {saga_id}")
        raise
    duration_ms = (time.monotonic_ns() - begun) // 1_000_000
    if options.trace:
        try:
            _print(*map(render.json_line, messages(client.show(saga_id))))
        except SagacityError as error:  # the outcome is known all the same
            _say(f"the messages cannot be shown: {error.text}")
        _print(render.json_line(final))
    elif options.json:
        _print(render.json_line({**final, "duration_ms": duration_ms}))
    elif options.no_wait:
        _print(render.json_line(final))
    else:
        _print(render.outcome(final))
    return EXIT_ABORTED if final.get("status") == "ABORTED" else EXIT_COMPLETED


def messages(saga: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the bodies that travelled between shard and services, from the answer to SHOW."""
    sent: dict[tuple[int, str], dict[str, Any]] = {}  # a long one is told once, however often sent
    for event in saga["history"]:
        if event["event"] == "answer":
            yield event["body"]
        elif event["event"] == "command":
            place = (event["step"], event["direction"])
            sent[place] = event.get("body") or sent[place]
            yield sent[place]


def show(options: argparse.Namespace) -> int:
    """Tell a saga's history."""
    with _errors_as_json(options.json):
        check_saga_id(options.id)
        if options.html is not None:
            require_new(options.html, force=options.force, option="--html")
        elif options.force:
            raise Malformed("--force replaces the file of --html: there is none")
        with Client(_url(options), timeout_s=READ_WAIT_S) as client:
            try:
                body = client.show(options.id)
            except Conflict:
                _say(story.PAST_RETENTION)
                raise
        if options.html is not None:
            content = storypage.html(body).encode()
            write_whole(content, options.html, force=options.force, option="--html")
            _say(f"written: {options.html}")
        if options.json:
            _print(render.json_line(body))
        elif options.events:
            _print(render.saga(body))
        elif options.html is None:
            _print(story.page(body))
            return 0  # the page says what can be done
        if body.get("stuck"):
            _say(f"to ask it again now: sagacity retry {options.id} --reason ...")
        return 0


def cancel(options: argparse.Namespace) -> int:
    """Turn a saga back."""
    with _errors_as_json(options.json):
        asked = requests.cancel({"type": "cancel", "saga_id": options.id, "reason": options.reason})
        with Client(_url(options)) as client:
            body = client.cancel(asked.saga_id, options.reason)
        _print(render.json_line(body) if options.json else render.outcome(body))
        return 0


def retry(options: argparse.Namespace) -> int:
    """Have a stuck compensation sent again now."""
    with _errors_as_json(options.json):
        asked = requests.retry({"type": "retry", "saga_id": options.id, "reason": options.reason})
        with Client(_url(options), timeout_s=READ_WAIT_S) as client:
            body = client.retry(asked.saga_id, options.reason)
        _print(render.json_line(body) if options.json else render.outcome(body))
        return 0


def list_sagas(options: argparse.Namespace) -> int:
    """List sagas."""
    with _errors_as_json(options.json):
        names = [name for given in options.status for name in given.split(",")]
        now_ms = time.time_ns() // 1_000_000
        since_ms = 0 if options.since is None else requests.since(options.since, now_ms)
        statuses = listing.checked(names, since_ms, options.limit)
        with Client(_url(options), timeout_s=READ_WAIT_S) as client:
            body = client.list(statuses=statuses, since_ms=since_ms, limit=options.limit)
        _print(render.json_line(body) if options.json else render.sagas(body))
        if len(body["sagas"]) == options.limit:
            _say(f"the newest {options.limit}; there may be more, see --limit")
        return 0


def status(options: argparse.Namespace) -> int:
    """Tell how the cluster is."""
    with _errors_as_json(options.json):
        with Client(_url(options), timeout_s=READ_WAIT_S) as client:
            body = render.rated(client.status())
        _print(render.json_line(body) if options.json else render.status(body))
        return 0


def audit(options: argparse.Namespace) -> int:
    """Compare the books."""
    with _errors_as_json(options.json), ExitStack() as stack:
        if options.data is None:
            url = _url(options)
        elif options.connect is not None:
            raise Malformed("audit: --data is for a stopped cluster, --connect for a running one")
        else:
            url = stack.enter_context(_run_on(options.data))
        client = stack.enter_context(Client(url))
        report = audit_books(client)
        _print(render.json_line(report) if options.json else render.audit(report))
        return 0 if report["balanced"] else EXIT_UNBALANCED


def verify_journal(options: argparse.Namespace) -> int:
    """Read the journals of a stopped cluster."""
    with _errors_as_json(options.json):
        report = verifying.verify(options.data)
        _print(render.json_line(report) if options.json else render.journal(report))
        if not report["verified"]:
            _say(verifying.ADVICE)
        return 0 if report["verified"] else Malformed.exit_code


def show_config(options: argparse.Namespace) -> int:
    """Show every key of the configuration."""
    with _errors_as_json(options.json):
        config = configuration.load(options.config)
        keys = {
            key: {"value": getattr(getattr(config, section), name), "source": source}
            for key, source in config.sources.items()
            for section, _, name in [key.partition(".")]
        }
        body = {"type": "config", "keys": keys}
        _print(render.json_line(body) if options.json else render.config(body))
        return 0


@contextmanager
def _run_on(data: Path) -> Iterator[str]:
    """Run a cluster of our own on a directory that holds one; give its address."""
    DataDirectory(data).read()  # nothing is made where there was no cluster
    with start_private(data) as cluster:
        yield cluster.url


def _url(options: argparse.Namespace) -> str:
    return options.connect or os.environ.get("SAGACITY_URL") or find_running()


def _item(text: str) -> dict[str, Any]:
    found = _ITEM.fullmatch(text)
    if found is None:
        raise Malformed(f"--item is SKU=QTY, like abc123=2, not {text!r}")
    return {"sku": found[1], "quantity": int(found[2])}


@contextmanager
def _errors_as_json(wanted: bool) -> Iterator[None]:
    try:
        yield
    except SagacityError as error:
        if wanted:
            _print(render.json_line(_writable(error.body())))
        raise


def _writable(body: dict[str, Any]) -> dict[str, Any]:
    """Give an error's body with a text that has a place in UTF-8: it may quote an argument."""
    return {**body, "text": body["text"].encode("utf-8", "backslashreplace").decode()}


def _print(*lines: str) -> None:
    if sys.stdout is None:  # closed by who started us
        return
    # Bytes: a terminal's or pipe's encoding does not change what scripts read.
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())
    sys.stdout.buffer.flush()


def _say(text: str) -> None:
    """Say something beside the data; what was asked for is done where nobody hears it, too."""
    with suppress(OSError, AttributeError):  # full; closed by who started us
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
