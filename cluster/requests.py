"""What people and nodes ask for, made into what the wire carries. Knows no socket.

Everything is checked here already, by the same types as in the shard: a request that is malformed
is answered at once, before a cluster is there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from sagacity import wire
from sagacity.messages import Cancel, Checkout, check_text, from_json, merge


class Asked(NamedTuple):
    """A request for the cluster: its kind, the saga it is about, its packed body."""

    kind: int
    saga_id: str
    body: bytes


def checkout(body: dict[str, Any], kind: int = wire.START) -> Asked:
    """Make the request of a `checkout` body; its msg_id stays here.

    Args:
        body: as it came in JSON.
        kind: wire.START or wire.SUBMIT.

    Raises:
        Malformed: it does not have the shape of SPEC 1, or is over a limit of SPEC 2.
    """
    read = from_json(_unnumbered(body), Checkout)
    merge(read)
    return Asked(kind, read.saga_id, wire.pack(read))


def cancel(body: dict[str, Any]) -> Asked:
    """Make the request of a `cancel` body; its msg_id stays here.

    Raises:
        Malformed: it does not have the shape, or is over a limit.
    """
    read = from_json(_unnumbered(body), Cancel)
    check_text("reason", read.reason)
    return Asked(wire.CANCEL, read.saga_id, wire.pack(read))


MAKERS: dict[str, Callable[[dict[str, Any]], Asked]] = {"checkout": checkout, "cancel": cancel}


def _unnumbered(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "msg_id"}
