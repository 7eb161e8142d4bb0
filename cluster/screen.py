"""The screen of `top`: figures as a page for a terminal. The only room that knows rich.

Pure but for `Screen`, which holds the terminal: it is given back as it was, however that ends.
Every text is a `Text`: what comes from a cluster is no markup and steers nothing.
"""

import io
import sys
from collections.abc import Sequence
from typing import IO, Final, Literal, NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.figures import SERVING, Figures, Need, PoolFigures, ShardFigures
from cluster.fleet import UP
from cluster.metrics import BY_NAME
from cluster.render import moment, plain
from sagacity import money

PLAIN_WIDTH: Final = 100  # off a terminal; as other commands have it
NARROW: Final = 72  # columns; below, what is least asked for is left out
_FIXED: Final = 11  # lines: five of the head, the lists' heads, and empty ones between
_ABOVE_MS: Final = BY_NAME["saga_duration_seconds"].edges[-1] / 1e6
_GOOD, _WARN, _BAD, _DIM = "green", "yellow", "bold red", "dim"
_BUSY_WARN, _BUSY_BAD = 0.7, 0.9  # of a loop's time


def page(
    found: Figures, *, width: int, height: int | None = None, away: str = ""
) -> RenderableType:
    """Give the page.

    Args:
        found: what to show.
        width: columns.
        height: lines it may take; None for as many as it needs.
        away: why the cluster does not answer, where it does not: the figures are old then.
    """
    wanted = [len(found.shards), len(found.pools), max(1, len(found.needs))]
    shown = wanted if height is None else shares(wanted, height - _FIXED)
    parts: list[RenderableType] = [_head(found, away), *_numbers(found), Text()]
    shards, pools = ([_shard(each) for each in found.shards], [_pool(each) for each in found.pools])
    parts += [_table(_SHARDS, shards, shown[0], width), Text()]
    parts += [_table(_POOLS, pools, shown[1], width), Text()]
    parts += _needs(found.needs, shown[2], width)
    return Group(*parts)


def shares(wanted: Sequence[int], lines: int) -> list[int]:
    """Share lines out among lists that want so many: in turns, so that the longest is cut first.

    Each gets at least one, wherever it wants one.
    """
    given = [min(1, want) for want in wanted]
    left = lines - sum(given)
    while left > 0 and given != list(wanted):
        for at, want in enumerate(wanted):
            if given[at] < want and left > 0:
                given[at] += 1
                left -= 1
    return given


# -- the head ------------------------------------------------------------------------------------


def _line(*parts: Text | str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _head(found: Figures, away: str) -> Text:
    at = moment(found.at_ms)[:19]
    if away:
        return _line((f"NO ANSWER since {at}: {plain(away)}", _BAD))
    state = ("serves", _GOOD) if found.ready else ("SERVES IN PART", _BAD)
    counted = ", ".join(f"{count} {plain(name)}" for name, count in found.processes.items())
    name = plain(found.cluster_id[:8])
    return _line(("Sagacity ", "bold"), name, "  ", state, (f"  {at}  {counted}", _DIM))


def _numbers(found: Figures) -> list[Text]:
    over = "" if found.interval_ms is None else f" over {found.interval_ms / 1000:.1f} s"
    ended = found.latency
    lines = [
        _line(
            *("started ", _rate(found.started), "   completed ", _rate(found.completed, _GOOD)),
            *(
                "   aborted ",
                _rate(found.aborted, _WARN),
                "   refused ",
                _rate(found.refused, _BAD),
            ),
        ),
        _line(
            *("latency p50 ", _latency(ended.p50_ms if ended else None)),
            *("   p99 ", _latency(ended.p99_ms if ended else None)),
            (f"   of {ended.ended} that ended{over}" if ended else "   measuring", _DIM),
        ),
        _line(
            *(
                "in flight ",
                _count(found.in_flight),
                "   turning back ",
                _count(found.compensating),
            ),
            *("   stuck ", _count(found.stuck, _BAD), "   at risk ", _at_risk(found)),
        ),
    ]
    causes = "  ".join(f"{plain(cause)} {rate:.1f}/s" for cause, rate in found.turned_back.items())
    lines.append(_line(("turned back: ", ""), causes or ("none", _DIM)))
    return lines


def _rate(per_second: float | None, style: str = "") -> Text:
    if per_second is None:
        return Text("-", _DIM)
    return Text(f"{per_second:.1f}/s", style if per_second else "")


def _count(count: int | None, style: str = "") -> Text:
    return Text("-", _DIM) if count is None else Text(str(count), style if count else "")


def _latency(ms: float | None) -> Text:
    if ms is None:
        return Text("-", _DIM)
    if ms >= _ABOVE_MS:
        return Text(f"> {_ABOVE_MS / 1000:g} s", _BAD)
    return Text(f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.1f} ms", _WARN if ms > 1000 else "")


def _at_risk(found: Figures) -> Text:
    if found.amount_at_risk is None:
        return Text("-", _DIM)
    return Text(money.show(found.amount_at_risk), _WARN if found.amount_at_risk else "")


# -- the tables ----------------------------------------------------------------------------------


class _Column(NamedTuple):
    """A column: its head, whether it holds words, whether it stands on a narrow terminal, too."""

    head: str
    words: bool = False
    always: bool = True


_SHARDS: Final = (
    _Column("shard"),
    _Column("state", words=True),
    _Column("epoch", always=False),
    _Column("in flight"),
    _Column("back"),
    _Column("stuck"),
    _Column("started", always=False),
    _Column("ended"),
    _Column("busy"),
    _Column("commit p99", always=False),
)
_POOLS: Final = (
    _Column("pool", words=True),
    _Column("active"),
    _Column("standby", always=False),
    _Column("gone"),
    _Column("busy"),
    _Column("credit"),
    _Column("waiting"),
    _Column("given", always=False),
    _Column("wait", always=False),
)


def _table(
    columns: Sequence[_Column], rows: Sequence[Sequence[Text]], lines: int, width: int
) -> Table:
    """Make a table of so many lines below its head; the last says how many are not told."""
    kept = [at for at, column in enumerate(columns) if column.always or width >= NARROW]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for at in kept:
        justify: Literal["left", "right"] = "left" if columns[at].words else "right"
        table.add_column(columns[at].head, justify=justify, no_wrap=True, overflow="ellipsis")
    told = rows[: _whole(len(rows), lines)]
    for row in told:
        table.add_row(*(row[at] for at in kept))
    if len(told) < len(rows):
        more = {True: Text(f"+{len(rows) - len(told)} more", _DIM), False: Text()}
        first = next(at for at in kept if columns[at].words)
        table.add_row(*(more[at == first] for at in kept))
    return table


def _whole(count: int, lines: int) -> int:
    """Give how many of a list are told in so many lines: the last one may say how many are not."""
    return count if count <= lines else max(0, lines - 1)


def _shard(each: ShardFigures) -> list[Text]:
    serves = each.state == UP and each.mode in (None, SERVING)
    state = each.state if serves or each.state != UP else str(each.mode)
    return [
        Text(str(each.shard)),
        Text(plain(state), _GOOD if serves else _BAD),
        _count(each.epoch),
        _count(each.in_flight),
        _count(each.compensating, _WARN),
        _count(each.stuck, _BAD),
        _rate(each.started),
        _rate(each.ended),
        _busy(each.busy),
        _latency(each.commit_p99_ms),
    ]


def _busy(share: float | None) -> Text:
    if share is None:
        return Text("-", _DIM)
    style = _BAD if share >= _BUSY_BAD else _WARN if share >= _BUSY_WARN else ""
    return Text(f"{share * 100:.0f} %", style)


def _pool(each: PoolFigures) -> list[Text]:
    return [
        Text(plain(each.service)),
        Text(str(each.active), "" if each.active else _BAD),
        _count(each.standbys),
        _count(each.gone, _WARN),
        _count(each.busy),
        _count(each.credit),
        _count(each.waiting, _WARN),
        _rate(each.commands),
        _latency(each.wait_ms),
    ]


def _needs(needs: Sequence[Need], lines: int, width: int) -> list[Text]:
    if not needs:
        return [_line(("Needs a person", "bold")), _line(("  nothing", _GOOD))]
    told = [_line("  ", (plain(need.text), "")) for need in needs[: _whole(len(needs), lines)]]
    if len(told) < len(needs):
        told.append(_line((f"  and {len(needs) - len(told)} more", _DIM)))
    for line in told:
        line.truncate(width, overflow="ellipsis")
    return [_line(("Needs a person", _BAD)), *told]


# -- the terminal --------------------------------------------------------------------------------


class Screen:
    """Shows one page after the other in place on a terminal, and leaves that as it was.

    Args:
        console: of the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console, screen=True, auto_refresh=False, vertical_overflow="crop"
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, found: Figures, away: str = "") -> None:
        """Show a page; the terminal may have another size by now."""
        width, height = self._console.size
        self._live.update(page(found, width=width, height=height, away=away), refresh=True)


def console(out: IO[str] | None = None) -> Console:
    """Give stdout as rich sees it: colours and width of a terminal, else none."""
    file = out or sys.stdout or io.StringIO()  # closed by who started us: as if nobody read
    off = not file.isatty()
    return Console(
        file=file,
        force_terminal=False if off else None,
        no_color=True if off else None,
        color_system=None if off else "auto",
        width=PLAIN_WIDTH if off else None,
        markup=False,
        emoji=False,
        highlight=False,
    )


def can_move(on: Console) -> bool:
    """Say whether pages can be shown in place there."""
    return on.is_terminal and not on.is_dumb_terminal


def text(found: Figures, on: Console) -> str:
    """Write one page as it would stand there, without the last newline."""
    with on.capture() as captured:
        on.print(page(found, width=on.width))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
