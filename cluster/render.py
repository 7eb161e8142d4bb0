"""The JSON edge and the tables: how bodies look to people and scripts. Knows no socket, no file.

JSON lines look exactly as in SPEC 1: `", "` and `": "` between, keys in the body's order, amounts
with two decimals. Money never passes through a float: the digits are written as they are.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from config.schema import RESERVED_NAMES
from sagacity import money, traces

# What an event of a history is called for people; other names stand for themselves.
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

EVENT_HEADS = ("after", "event", "step", "direction", "attempt", "outcome", "what")

RATED = ("started", "completed", "aborted")  # what a shard counts in its window


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


def sagas(body: Mapping[str, Any]) -> str:
    """Write a list of sagas for people, a line each."""
    heads = ("saga", "status", "started", "took", "amount", "order", "why")
    return table(heads, [_saga_row(each) for each in body["sagas"]])


def _saga_row(saga: Mapping[str, Any]) -> tuple[Any, ...]:
    started_ms, ended_ms = saga["started_ms"], saga["ended_ms"]
    return (
        saga["saga_id"],
        "STUCK" if saga["stuck"] else saga["status"],
        moment(started_ms),
        None if ended_ms is None else seconds(ended_ms - started_ms),
        money.show(saga["amount"]),
        saga["order_id"],
        saga["reason"],
    )


def moment(wall_ms: int) -> str:
    """Write an instant in local time; a clock may have said anything."""
    try:
        at = datetime.fromtimestamp(wall_ms // 1000).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{wall_ms} ms"
    return f"{at}.{wall_ms % 1000:03d}"


def seconds(ms: int) -> str:
    """Write a duration; one that a clock has turned around shows."""
    return f"{'-' if ms < 0 else ''}{abs(ms) // 1000}.{abs(ms) % 1000:03d} s"


def saga(body: Mapping[str, Any]) -> str:
    """Write a saga's history (the answer to SHOW) for people, as a table of its events.

    One line says what it is, one line each what happened and when, the last why it ended so.
    """
    history: Sequence[Mapping[str, Any]] = body.get("history", [])
    rows = event_rows(history)
    head = [headline(body), *traced(body)]
    return "\n".join([*head, "", table(EVENT_HEADS, rows), "", plain(why(body, history))])


def event_rows(history: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Give a history's events as rows under EVENT_HEADS."""
    first = history[0]["at_ms"] if history else 0
    return [_event_row(event, event["at_ms"] - first) for event in history]


def headline(body: Mapping[str, Any]) -> str:
    """Write the line that says what a saga is."""
    head = [body["saga_id"], body["status"]]
    if body.get("stuck"):
        head.append("STUCK")
    if body.get("order_id"):
        head.append(f"order {body['order_id']}")
    head.append(f"amount {money.show(body.get('amount', 0))}")
    return plain("  ".join(head))


def traced(body: Mapping[str, Any]) -> list[str]:
    """Give the line that names the trace of a saga; none where it has none."""
    parent = traces.read(body.get("traceparent"))
    return [] if parent is None else [f"trace {parent.trace_id}"]


def reasons(body: Mapping[str, Any]) -> str:
    """Give what a reply's body says of why; empty where it says nothing."""
    keys = ("error", "decline_code", "sku", "reason", "text")
    return ", ".join(str(body[key]) for key in keys if body.get(key))


def _event_row(event: Mapping[str, Any], after_ms: int) -> tuple[Any, ...]:
    return (
        f"{'' if after_ms < 0 else '+'}{seconds(after_ms)}",
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
    if "deaths" in event:
        found.append(f"{event['deaths']} workers died of it")
    found += [str(holder["cause"]) for holder in (event, body) if holder.get("cause")]
    for key in ("error", "decline_code", "sku", "reason", "text"):
        if key in body:
            found.append(f"{key} {body[key]}")
        elif event.get(key):
            found.append(f"{key} {event[key]}")
    if type(body.get("amount")) is int:
        found.append(money.show(body["amount"]))
    return ", ".join(found)


def why(body: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    """Give the sentence that says why a saga ended so, or where it stands."""
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
    """Write the cluster's status for people: where it is, its shards, pools and processes."""
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
    shards: Sequence[Mapping[str, Any]] = body.get("shards", [])
    heads = ("role", "index", "pid", "state", "restarts", "silent")
    rows = [
        (*(each[name] for name in heads[:4]), each.get("restarts"), _silent(each))
        for each in processes
    ]
    parts = [_shards(shards), _pools(processes), _routers(processes), table(heads, rows)]
    return "\n\n".join(["\n".join(lines), *(part for part in parts if part)])


def _silent(process: Mapping[str, Any]) -> str | None:
    silent_ms = process.get("silent_ms")
    return None if silent_ms is None else seconds(silent_ms)


def _shards(shards: Sequence[Mapping[str, Any]]) -> str:
    heads = ("shard", "state", "epoch", "in flight", "compensating", "stuck")
    keys = ("shard", "state", "epoch", "in_flight", "compensating", "stuck")
    rates = tuple(f"{name}/s" for name in RATED)
    rows = []
    for shard in shards:
        per_second = shard.get("rates", {})
        told = (per_second.get(name) for name in RATED)
        rows.append(
            (*(shard.get(key) for key in keys), *(None if x is None else f"{x:.1f}" for x in told))
        )
    return table((*heads, *rates), rows)


def _pools(processes: Sequence[Mapping[str, Any]]) -> str:
    services = [each["role"] for each in processes if each["role"] not in RESERVED_NAMES]
    rows = []
    for service in dict.fromkeys(services):
        members = [each for each in processes if each["role"] == service]
        active = [each for each in members if each["state"] == "up"]
        standbys = sum(each["state"] == "standby" for each in members)
        facts = [each.get("facts") or {} for each in active]
        busy, capacity = (sum(fact.get(key, 0) for fact in facts) for key in ("busy", "capacity"))
        names = ", ".join(f"{service}-{each['index']}" for each in active)
        rows.append((service, names or "nobody", standbys, f"{busy}/{capacity}"))
    return table(("pool", "active", "standbys", "busy"), rows) if rows else ""


def _routers(processes: Sequence[Mapping[str, Any]]) -> str:
    found = [each for each in processes if each["role"] == "router"]
    keys = ("requests", "clients", "shards_connected", "outbox_bytes", "replies_dropped")
    rows = [
        (each["state"], *((each.get("facts") or {}).get(key) for key in keys)) for each in found
    ]
    heads = ("router", "requests", "clients", "shards", "outbox bytes", "replies dropped")
    return table(heads, rows) if rows else ""


def rated(body: Mapping[str, Any]) -> dict[str, Any]:
    """Give a status with `rates`, of each shard and of all: sagas a second over its window.

    A shard that does not serve has none. The window is some ten seconds, `window_ms`.
    """
    total: dict[str, float] = dict.fromkeys(RATED, 0.0)
    shards = []
    for shard in body.get("shards", []):
        rates = {}
        if shard.get("window_ms"):
            for name in RATED:
                per_second = shard.get(f"{name}_in_window", 0) * 1000 / shard["window_ms"]
                rates[name] = round(per_second, 3)
                total[name] = round(total[name] + per_second, 3)
        shards.append({**shard, "rates": rates})
    return {**body, "shards": shards, "rates": total}


def config(body: Mapping[str, Any]) -> str:
    """Write the configuration for people: a line for each key."""
    heads = ("key", "from", "value")  # the longest last
    return table(
        heads,
        [
            (key, each["source"], _setting(each["value"]))
            for key, each in sorted(body["keys"].items())
        ],
    )


def _setting(value: Any) -> str:
    return json_line(value) if isinstance(value, str | list | tuple | dict) else str(value)


def journal(report: Mapping[str, Any]) -> str:
    """Write what a look at the journals found, for people."""
    shards: Sequence[Mapping[str, Any]] = report["shards"]
    heads = ("shard", "finished", "checkpoint", "rows", "last row", "epoch", "faults", "chain")
    keys = ("shard", "finished", "checkpoint", "rows", "last_seq", "epoch")
    rows = [(*(s[key] for key in keys), len(s["faults"]), s["chain"]) for s in shards]
    lines = [table(heads, rows), ""]
    if report["verified"]:
        lines.append("Every journal is what its shard wrote.")
    else:
        lines.append("NOT EVERY JOURNAL IS WHAT ITS SHARD WROTE:")
        lines += [f"  shard {s['shard']}: {plain(fault)}" for s in shards for fault in s["faults"]]
    return "\n".join(lines)


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


def check(report: Mapping[str, Any]) -> str:
    """Write what the checker found, for people: a line an invariant, then what is wrong."""
    found: Sequence[Mapping[str, Any]] = report["invariants"]
    heads = ("invariant", "verdict", "findings", "looked at")
    rows = [
        (
            f"{each['number']} {each['name']}",
            each["verdict"],
            each["found"],
            ", ".join(f"{count} {kind}" for kind, count in each["looked_at"].items()),
        )
        for each in found
    ]
    lines = [table(heads, rows), ""]
    for each in found:
        lines += [f"{each['number']}: {plain(_finding(one))}" for one in each["findings"]]
        if more := each["found"] - len(each["findings"]):
            lines.append(f"{each['number']}: and {more} more")
        lines += [f"{each['number']}: cannot tell: {plain(why)}" for why in each["why"]]
    if "self_test" in report:
        tried = report["self_test"]
        unseen: Sequence[str] = tried["unseen"]
        lines.append(f"self-test: {tried['changes']} changes, {len(unseen)} unseen")
        lines += [f"  not seen: {each}" for each in unseen]
    verdict = "All that was asked holds." if report["holds"] else "NOT ALL THAT WAS ASKED HOLDS."
    lines.append(f"{verdict} {report['sagas']} sagas were looked at.")
    return "\n".join(lines)


def _finding(one: Mapping[str, str]) -> str:
    who = f"saga {one['saga_id']} " if one["saga_id"] else ""
    return f"{who}{one['what']} ({one['where']})"
