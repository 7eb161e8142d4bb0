"""`make demo`: what a newcomer sees first. A real cluster, a real Maelstrom node, five checkouts.

Each ends in another way; for each the messages that travelled are shown, then what became of all,
then the audit. It fails if anything is not as it should be. Knows the faces, no room behind them.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final

from msgspec import Struct

from cluster import render
from cluster.audit import audit
from cluster.cli import EXIT_INTERRUPTED
from cluster.commands import messages
from cluster.private import start_private
from sagacity.client import Client
from sagacity.errors import NoOutcome, SagacityError

ANSWER_S: Final = 30.0  # for one answer of the node
NODE: Final = "checkout_orchestrator"
_FORWARD: Final = (
    "ReserveInventory",
    "ReserveInventory_ok",
    "ChargePayment",
    "ChargePayment_ok",
    "CreateShipment",
    "CreateShipment_ok",
)
_RELEASED: Final = ("ReleaseReservation", "ReleaseReservation_ok")


class Case(Struct, frozen=True):
    """A checkout, and how it has to end.

    Args:
        title: what it shows.
        user: who pays.
        items: SKU and quantity of each line.
        address: where to.
        status: the final one.
        reason: of an aborted one, "" of a completed one.
        travelled: the types of all messages between shard and services, in order.
    """

    title: str
    user: str
    items: tuple[tuple[str, int], ...]
    address: str
    status: str
    reason: str
    travelled: tuple[str, ...]

    def body(self, saga_id: str) -> dict[str, Any]:
        """Give the client's message."""
        return {
            "type": "checkout",
            "msg_id": 1,
            "saga_id": saga_id,
            "user_id": self.user,
            "items": [{"sku": sku, "quantity": quantity} for sku, quantity in self.items],
            "shipping_address": self.address,
        }


CASES: Final = (
    Case(
        "all goes well",
        "u42",
        (("abc123", 2), ("xyz789", 1)),
        "123 Main St",
        "COMPLETED",
        "",
        _FORWARD,
    ),
    Case(
        "the card is declined: what was reserved is released",
        "u999",
        (("abc123", 1),),
        "123 Main St",
        "ABORTED",
        "Payment declined: DECLINED",
        (*_FORWARD[:3], "ChargePayment_failed", *_RELEASED),
    ),
    Case(
        "too little stock: nothing was done, nothing is undone",
        "u42",
        (("sku_out_of_stock", 1),),
        "123 Main St",
        "ABORTED",
        "Out of stock: sku_out_of_stock",
        ("ReserveInventory", "ReserveInventory_failed"),
    ),
    Case(
        "a SKU that nobody knows: no command is sent at all",
        "u42",
        (("zzz", 1),),
        "123 Main St",
        "ABORTED",
        "Unknown SKU: zzz",
        (),
    ),
    Case(
        "no carrier: nothing to cancel, refunded, released",
        "u42",
        (("xyz789", 3),),
        "no_carrier",
        "ABORTED",
        "Shipment refused: NO_CARRIER",
        (
            *_FORWARD[:5],
            "CreateShipment_failed",
            *("RefundPayment", "RefundPayment_ok"),
            *_RELEASED,
        ),
    ),
)

_ABOUT: Final = "Start a cluster, run every way a checkout can end, audit the books, stop it."
_NEXT: Final = """What to try next:
  make up                        run a cluster in the foreground; then, beside it:
  .venv/bin/sagacity checkout --user u42 --item abc123=2 --address "123 Main St" --trace
  .venv/bin/sagacity status      its processes; kill -9 any of them and check out again
  .venv/bin/sagacity audit       the books
  .venv/bin/sagacity maelstrom   the node that you have just seen, on your own stdin
"""


class Unexpected(Exception):
    """Something was not as the demo promises."""


class Node:
    """A Maelstrom node: one line to it, one line from it."""

    def __init__(self, url: str, log: IO[bytes]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - no shell, and the command is our own
            [sys.executable, "-P", "-m", "cluster", "maelstrom", "--connect", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
        )

    def say(self, client: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a message, show it and its answer; give the answer's body."""
        line = json.dumps({"src": client, "dest": NODE, "body": body})
        _tell(f"  -> {line}")
        sent, heard = self._process.stdin, self._process.stdout
        assert sent is not None
        assert heard is not None
        try:
            sent.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise Unexpected("the node has ended") from None
        ready, _, _ = select.select([heard], [], [], ANSWER_S)
        answer = heard.readline() if ready else b""
        if not answer:
            raise NoOutcome(f"the node did not answer within {ANSWER_S:g} s")
        _tell(f"  <- {answer.decode().rstrip()}")
        found: dict[str, Any] = json.loads(answer)["body"]
        return found

    def stop(self) -> None:
        """End its input and wait for its end; it has to end well."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code != 0:
            raise Unexpected(f"the node ended with {code}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: without the program's name; those of this process if left out.

    Returns:
        0 if all was as it should be or nobody reads on, 1 if not, 130 after Ctrl-C.
    """
    argparse.ArgumentParser(
        prog="python -m cluster.demo", description=_ABOUT, allow_abbrev=False
    ).parse_args(argv)
    try:
        return _demo()
    except BrokenPipeError:
        # Who read us has read enough. What is still buffered must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _demo() -> int:
    begun = time.monotonic()
    with tempfile.TemporaryFile() as log:
        try:
            _tell("Starting a cluster on a temporary directory:")
            _tell("a router, two shards, and two workers for each of three services.\n")
            with start_private(stderr=log.fileno()) as cluster, Client(cluster.url) as client:
                _show(cluster.url, client, log)
        except (Unexpected, SagacityError) as error:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            sys.stderr.write(f"\nThe demo failed: {error}. The log of its processes is above.\n")
            return 1
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
    _tell(f"All as it should be, in {time.monotonic() - begun:.1f} s.\n\n{_NEXT}")
    return 0


def _show(url: str, client: Client, log: IO[bytes]) -> None:
    rows = []
    with _node(url, log) as node:
        _tell("A Maelstrom node in front of it; each line to it and from it:")
        node.say("c0", {"type": "init", "msg_id": 1})
        for number, case in enumerate(CASES, start=42):
            saga_id = f"checkout{number}"
            _tell(f"\n{saga_id}: {case.title}")
            answer = node.say(f"c{number}", case.body(saga_id))
            travelled = list(messages(client.show(saga_id)))
            _tell("  between shard and services:")
            for message in travelled:
                _tell(f"     {render.json_line(message)}")
            if not travelled:
                _tell("     nothing")
            _require(case, answer, [message["type"] for message in travelled])
            ended = answer.get("reason") or f"order {answer['order_id']}"
            rows.append((saga_id, case.user, answer["status"], ended, len(travelled)))
    report = audit(client)
    _tell("\n" + render.table(("saga", "user", "ended", "why", "messages"), rows))
    _tell("\nThe audit, journals against stock, money and shipments:\n")
    _tell(render.audit(report) + "\n")
    if not report["balanced"]:
        raise Unexpected("the books do not balance")


@contextmanager
def _node(url: str, log: IO[bytes]) -> Iterator[Node]:
    node = Node(url, log)
    try:
        yield node
    finally:
        node.stop()


def _require(case: Case, answer: dict[str, Any], travelled: list[str]) -> None:
    seen = (answer.get("status"), answer.get("reason", ""), tuple(travelled))
    wanted = (case.status, case.reason, case.travelled)
    if seen != wanted:
        raise Unexpected(f"{case.title}: expected {wanted}, got {seen}")


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
