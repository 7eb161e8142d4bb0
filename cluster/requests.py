"""What people and nodes ask for, made into what the wire carries. Knows no socket.

Everything is checked here already, by the same types as in the shard: a request that is malformed
is answered at once, before a cluster is there.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from sagacity import wire
from sagacity.errors import Malformed
from sagacity.ids import check_saga_id
from sagacity.messages import Cancel, Checkout, RetryNow, check_text, from_json, merge

_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


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


def retry(body: dict[str, Any]) -> Asked:
    """Make the request of a `retry` body.

    Raises:
        Malformed: it does not have the shape, or is over a limit.
    """
    read = from_json(_unnumbered(body), RetryNow)
    check_text("reason", read.reason)
    check_saga_id(read.saga_id)
    return Asked(wire.RETRY, read.saga_id, wire.pack(read))


def since(text: str, now_ms: int) -> int:
    """Read an instant: how long ago (30s, 15m, 2h, 7d), or ISO 8601, in local time without a zone.

    Returns:
        Milliseconds since 1970; 0 for whatever is before.

    Raises:
        Malformed: it is neither.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(0, now_ms - int(ago[1]) * _UNIT_MS[ago[2]])
    try:
        seconds = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise Malformed(
            f"--since is 15m, 2h or 7d ago, or a time like 2026-01-31T18:00, not {text!r}"
        ) from None
    return max(0, int(seconds * 1000))


MAKERS: dict[str, Callable[[dict[str, Any]], Asked]] = {"checkout": checkout, "cancel": cancel}


def _unnumbered(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "msg_id"}
