"""A saga's page for a browser: one HTML file with everything in it. Pure; knows no socket, no file.

Whatever a saga says of itself (ids, reasons, addresses) came from outside: every text is escaped
in one place, nothing on the page runs or is fetched, and its own policy forbids both.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from cluster.render import EVENT_HEADS, event_rows, moment, plain, seconds, traced
from cluster.story import story_of, times
from cluster.timeline import Lane, Lanes, end_of, lanes_of
from sagacity import money

# Of the drawing, in its own units: names to the left, bars, outcomes to the right.
_WIDTH: Final = 960
_BAR_X: Final = 210
_BAR_WIDTH: Final = 430
_TEXT_X: Final = _BAR_X + _BAR_WIDTH + 12
_ROW: Final = 26
_BAR_HEIGHT: Final = 12
_NAME_MAX: Final = 24  # characters
_OUTCOME_MAX: Final = 40
_TICKS_MAX: Final = 200  # attempts drawn in one bar

# Nothing is fetched and nothing runs, whatever a text might hold.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE: Final = """\
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --dim: #57606a;
  --line: #d0d7de; --ok: #1a7f37; --no: #9a5b00; --open: #0a5ec2; --undo: #7a3fc4;
  --alarm: #c4242d }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --dim: #9aa4ae;
  --line: #30363d; --ok: #3fb950; --no: #d9a03f; --open: #58a6ff; --undo: #b78bfa;
  --alarm: #ff7b72 } }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.4rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2rem }
.status { border: 1px solid; border-radius: 1em; font-size: .9rem; padding: .1em .7em;
  white-space: nowrap }
.ok { color: var(--ok) } .no { color: var(--no) } .open { color: var(--open) }
.alarm { color: var(--alarm) } .dim { color: var(--dim) }
.why { font-size: 1.1rem } p, li, td { overflow-wrap: anywhere }
svg { width: 100%; height: auto } svg text { fill: var(--ink); font: 13px system-ui, sans-serif }
svg .dim { fill: var(--dim) } svg .axis { stroke: var(--line) } svg .b-ok { fill: var(--ok) }
svg .b-no { fill: var(--no) } svg .b-open { fill: var(--open) } svg .b-undo { fill: var(--undo) }
svg .tick { stroke: var(--alarm); stroke-width: 2 } svg .turn { stroke: var(--no);
  stroke-dasharray: 4 3; stroke-width: 1.5 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem }
th, td { border-bottom: 1px solid var(--line); padding: .25em .8em .25em 0; text-align: left;
  vertical-align: top } td:last-child { min-width: 14rem }
"""

_KINDS: Final = {"COMPLETED": "ok", "ABORTED": "no", "STUCK": "alarm"}


def html(body: Mapping[str, Any]) -> str:
    """Write the answer to SHOW as a page that stands alone."""
    history: Sequence[Mapping[str, Any]] = body.get("history", [])
    lanes = lanes_of(history)
    story = story_of(body, lanes)
    status = "STUCK" if body.get("stuck") else str(body["status"])
    facts = [f"price {money.show(body.get('amount', 0))}"]
    facts += [f"order {body['order_id']}"] if body.get("order_id") else []
    facts += [times(lanes)] if history else []
    facts += traced(body)
    mark = f'<span class="status {_KINDS.get(status, "open")}">{_text(status)}</span>'
    parts = [
        f"<h1>{_text(body['saga_id'])} {mark}</h1>",
        f'<p class="dim">{_text(", ".join(facts))}</p>',
        f'<p class="why">{_text(story.why)}</p>',
        *([f"<p>{_text(story.money)}</p>"] if story.money else []),
        f"<p><strong>{_text(story.verdict)}</strong></p>",
    ]
    if story.advice:
        parts += ["<h2>What a person can do</h2>", _list(story.advice)]
    if lanes.actions or lanes.compensations:
        parts += ["<h2>Timeline</h2>", f'<div class="wide">{svg(lanes)}</div>']
    parts += ["<h2>Every event</h2>", f'<div class="wide">{_table(history)}</div>']
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(body['saga_id'])}: {_text(status)}</title>\n"
        f"<style>\n{_STYLE}</style></head>\n<body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _text(value: object) -> str:
    """Give a text that is nothing but text in a page: the one door through which all pass."""
    return escape(plain(str(value)), quote=True)


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _table(history: Sequence[Mapping[str, Any]]) -> str:
    heads = "".join(f"<th>{_text(head)}</th>" for head in EVENT_HEADS)
    rows = "".join(
        f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>"
        for row in event_rows(history)
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


# -- the drawing -------------------------------------------------------------------------------


def svg(lanes: Lanes) -> str:
    """Draw the timeline: a bar a command, a tick where an attempt ended, a line where it turned."""
    rows: list[str] = []
    y = _ROW * 2
    y = _group(rows, lanes, "actions", list(lanes.actions.values()), y, action=True)
    if lanes.compensations:
        undone = list(lanes.compensations.values())
        y = _group(rows, lanes, "compensations", undone, y, action=False)
    height = y
    right = _BAR_X + _BAR_WIDTH
    axis = [
        f'<line class="axis" x1="{x}" y1="{_ROW}" x2="{x}" y2="{height}"/>' for x in (_BAR_X, right)
    ]
    axis.append(_words(_BAR_X, _ROW - 8, "0", "dim", "middle"))
    axis.append(_words(right, _ROW - 8, seconds(lanes.span_ms), "dim", "middle"))
    if lanes.turned_back is not None and lanes.turned_ms is not None:
        x = _x(lanes, lanes.turned_ms)
        cause = f"turned back after {seconds(lanes.turned_ms - lanes.first_ms)}"
        why = f"{cause}: {lanes.turned_back.get('cause')}, {lanes.turned_back.get('reason')}"
        axis.append(
            f'<line class="turn" x1="{x:.1f}" y1="{_ROW}" x2="{x:.1f}" y2="{height}">'
            f"<title>{_text(why)}</title></line>"
        )
    label = f"Timeline from {moment(lanes.first_ms)} over {seconds(lanes.span_ms)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{_text(label)}">{"".join([*axis, *rows])}</svg>'
    )


def _group(
    rows: list[str], lanes: Lanes, title: str, group: Sequence[Lane], y: int, *, action: bool
) -> int:
    """Draw lanes below each other from `y` on; give where the next group begins."""
    rows.append(_words(0, y - 8, title, "dim"))
    for lane in group:
        y += _ROW
        rows.append(_lane(lanes, lane, y, action=action))
    return y + _ROW


def _lane(lanes: Lanes, lane: Lane, y: int, *, action: bool) -> str:
    end = end_of(lanes, lane, action=action)
    begin_x, end_x = sorted((_x(lanes, lane.begun_ms), _x(lanes, end.at_ms)))
    if end.is_open:
        kind = "b-open"
    elif lane.outcome == "ok":
        kind = "b-ok" if action else "b-undo"
    else:
        kind = "b-no"
    top = y - 8 - _BAR_HEIGHT + 2
    took = seconds(end.at_ms - lane.begun_ms)
    outcome = f"{end.outcome}: {lane.cause}" if lane.cause else end.outcome
    whole = "\n".join([f"{lane.name}: {took}, {outcome}", *(note.text for note in lane.notes)])
    high, low = top - 2, top + _BAR_HEIGHT + 2
    ticks = "".join(
        f'<line class="tick" x1="{x:.1f}" y1="{high}" x2="{x:.1f}" y2="{low}"/>'
        for x in (_x(lanes, at_ms) for at_ms in lane.ended_attempts[-_TICKS_MAX:])
    )
    return (
        f"<g><title>{'&#10;'.join(_text(line) for line in whole.splitlines())}</title>"
        + _words(10, y - 8, f"{lane.step} {_cut(lane.name, _NAME_MAX)}")
        + f'<rect class="{kind}" x="{begin_x:.1f}" y="{top}" '
        f'width="{max(3.0, end_x - begin_x):.1f}" height="{_BAR_HEIGHT}" rx="2"/>'
        + ticks
        + _words(_TEXT_X, y - 8, _cut(f"{took}  {outcome}", _OUTCOME_MAX))
        + "</g>"
    )


def _x(lanes: Lanes, at_ms: int) -> float:
    """Give an instant's place; a clock that was set back leaves no drawing."""
    share = (at_ms - lanes.first_ms) / max(1, lanes.span_ms)
    return _BAR_X + min(max(share, 0.0), 1.0) * _BAR_WIDTH


def _words(x: int, y: int, text: str, kind: str = "", anchor: str = "start") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{of_kind}>{_text(text)}</text>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
