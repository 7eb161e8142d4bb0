"""The JSON edge and the tables: how bodies look to people and scripts. Knows no socket, no file.

JSON lines look exactly as in SPEC 1: `", "` and `": "` between, keys in the body's order, amounts
with two decimals. Money never passes through a float: the digits are written as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sagacity import money

# What an outcome of a command is called for people; other names stand for themselves.
_EVENTS = {
    "started": "started",
    "command": "sent",
    "answer": "answered",
    "attempt_ended": "attempt ended",
    "turned_back": "turned back",
    "asked": "asked",
    "left_out": "left out",
    "finished": "finished",
}


def json_line(body: Any) -> str:
    """Write a body as one line of JSON, without the newline.

    Args:
        body: maps with text keys, lists, texts, integers, booleans and None. A member `amount`
            is minor units and is written with two decimals.
    """
    return msgspec.json.format(msgspec.json.encode(_edge(body)), indent=0).decode()


def _edge(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _member(key, member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_edge(member) for member in value]
    return value


def _member(key: str, value: Any) -> Any:
    if key == "amount" and type(value) is int:
        return msgspec.Raw(money.show(value).encode())
    return _edge(value)


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a table for people: columns padded, numbers to the right, one header line."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row[at], int) for row in rows) for at in range(len(heads))
    ]
    widths = [max(len(line[at]) for line in [[*heads], *cells]) for at in range(len(heads))]
    lines = []
    for line in [[*heads], *cells]:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(str(value))


def plain(text: str) -> str:
    """Give a text that cannot steer a terminal: what is not printable is written escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def outcome(body: Mapping[str, Any]) -> str:
    """Write a client's answer as one readable line."""
    saga_id, status = body.get("saga_id", "-"), body.get("status", "-")
    if "order_id" in body:
        return plain(f"{saga_id}: {status}, order {body['order_id']}")
    if "reason" in body:
        return plain(f"{saga_id}: {status}, {body['reason']}")
    return plain(f"{saga_id}: {status}")


def saga(body: Mapping[str, Any]) -> str:
    """Write a saga's history (the answer to SHOW) for people.

    One line says what it is, one line each what happened and when, the last why it ended so.
    """
    head = [body["saga_id"], body["status"]]
    if body.get("stuck"):
        head.append("STUCK")
    if body.get("order_id"):
        head.append(f"order {body['order_id']}")
    head.append(f"amount {money.show(body.get('amount', 0))}")
    history: Sequence[Mapping[str, Any]] = body.get("history", [])
    first = history[0]["at_ms"] if history else 0
    rows = [_event_row(event, event["at_ms"] - first) for event in history]
    heads = ("after", "event", "step", "direction", "attempt", "outcome", "what")
    return "\n".join(
        [plain("  ".join(head)), "", table(heads, rows), "", plain(_why(body, history))]
    )


def _event_row(event: Mapping[str, Any], after_ms: int) -> tuple[Any, ...]:
    return (
        f"{'-' if after_ms < 0 else '+'}{abs(after_ms) // 1000}.{abs(after_ms) % 1000:03d} s",
        _EVENTS.get(event["event"], event["event"]),
        event.get("step", ""),
        event.get("direction", ""),
        event.get("attempt", ""),
        event.get("outcome", ""),
        _what(event),
    )


def _what(event: Mapping[str, Any]) -> str:
    body: Mapping[str, Any] = event.get("body") or {}
    found = [str(body["type"])] if "type" in body else []
    if "attempts" in event:
        found.append(f"{event['attempts']} attempts")
    found += [str(holder["cause"]) for holder in (event, body) if holder.get("cause")]
    for key in ("error", "decline_code", "sku", "reason", "text"):
        if key in body:
            found.append(f"{key} {body[key]}")
        elif event.get(key):
            found.append(f"{key} {event[key]}")
    if type(body.get("amount")) is int:
        found.append(money.show(body["amount"]))
    return ", ".join(found)


def _why(body: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    status, reason = body["status"], body.get("reason") or body.get("cause") or "no reason kept"
    sent = [event for event in history if event["event"] == "command"]
    last = str((sent[-1].get("body") or {}).get("type", "a command")) if sent else ""
    if status == "COMPLETED":
        return "It completed: every step succeeded."
    if status == "ABORTED":
        if not sent:
            return f"It ended before any command was sent: {reason}."
        if any(event.get("direction") == "compensation" for event in sent):
            return f"It was turned back ({reason}), and everything it had done is undone."
        return f"It was turned back ({reason}); nothing had been done that had to be undone."
    if body.get("stuck"):
        return f"It is stuck: {last} does not succeed; a person has to look ({reason})."
    if status == "COMPENSATING":
        return f"It is turning back ({reason}); last sent: {last or 'nothing'}."
    return f"It is running; last sent: {last or 'nothing yet'}."


def status(body: Mapping[str, Any]) -> str:
    """Write the cluster's status for people: where it is, its processes, its shards."""
    lines = [
        f"{name}: {plain(str(body[key]))}"
        for name, key in (
            ("cluster", "cluster_id"),
            ("router", "router"),
            ("metrics", "metrics"),
            ("directory", "data"),
        )
        if key in body
    ]
    processes: Sequence[Mapping[str, Any]] = body.get("processes", [])
    heads = ("role", "index", "pid", "state", "facts")
    rows = [
        (each["role"], each["index"], each["pid"], each["state"], _facts(each.get("facts") or {}))
        for each in processes
    ]
    return "\n".join([*lines, "", table(heads, rows)])


def _facts(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def audit(report: Mapping[str, Any]) -> str:
    """Write an audit's report for people: the books, and each fault as a sentence."""
    stock: Mapping[str, Mapping[str, int]] = report["stock"]
    columns = ("initial", "available", "held", "shipped")
    goods = table(
        ("sku", *columns), [(sku, *(row[name] for name in columns)) for sku, row in stock.items()]
    )
    charged, refunded = (report["money"][name] for name in ("charged", "refunded"))
    lines = [
        goods,
        "",
        f"money: {money.show(charged)} charged, {money.show(refunded)} refunded",
        "shipments: {live} live, {cancelled} cancelled".format(**report["shipments"]),
        "sagas: {completed} completed, {aborted} aborted, {running} running ({stuck} stuck)".format(
            **report["sagas"]
        ),
        "",
    ]
    if report["balanced"]:
        lines.append("The books balance.")
    else:
        lines.append("THE BOOKS DO NOT BALANCE:")
        lines += [f"  {plain(fault)}" for fault in report["faults"]]
    return "\n".join(lines)
