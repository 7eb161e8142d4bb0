"""What `bench run` can be asked, checked before anything is started."""

import argparse
import math
import os
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, structs

from bench import mix as mixes
from bench.carts import STOCK
from bench.mix import Mix
from bench.schedule import EVEN, POISSON
from sagacity.errors import Malformed

IN_FLIGHT: Final = 1024
DURATION_S: Final = 10.0
WARM_UP_S: Final = 2.0
SHARDS: Final = 2
OBJECTIVE_MS: Final = 1000
TIMEOUT_S: Final = 35.0

IN_FLIGHT_MAX: Final = 1_000_000
GENERATORS_MAX: Final = 64
RATE_MAX: Final = 10_000_000.0
SAGAS_MAX: Final = 1_000_000_000
DURATION_MAX_S: Final = 7 * 86_400.0
RATE_OF_ONE: Final = 30_000.0  # starts a second that one generator is trusted with


class Options(Struct, frozen=True, kw_only=True):
    """One run, checked.

    Args:
        in_flight: of the closed loop; 0 for the open one.
        rate: of the open loop, per second; 0 for the closed one.
        sagas: to be started; None: as many as there is time for.
        duration_s: starts end after it; None: when all `sagas` are started.
        generators: processes; 0: one, more if one is not enough.
        hot_units: of what --hot-sku buys.
        by_shard: each generator asks one shard alone, so that each shard has its own tally; of a
            cluster of its own with as many shards as `generators`.
    """

    in_flight: int
    rate: float
    sagas: int | None
    duration_s: float | None
    warm_up_s: float
    mix: Mix
    arrivals: str
    seed: int
    generators: int
    objective_ms: int
    timeout_s: float
    connect: str | None
    data: Path | None
    shards: int | None
    workers: int | None
    config: Path | None
    json: Path | None
    force: bool
    hot_units: int = STOCK
    by_shard: bool = False

    def settings(self) -> dict[str, Any]:
        """Give what describes the load, for the result."""
        left_out = {"connect", "data", "config", "json", "force", "mix", "shards", "workers"}
        found = {key: value for key, value in structs.asdict(self).items() if key not in left_out}
        loop = "open" if self.rate else "closed"
        own = self.connect is None
        return {"loop": loop, **found, "mix": structs.asdict(self.mix), "own_cluster": own}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_load_arguments(parser)
    cluster = parser.add_argument_group("cluster")
    where = cluster.add_mutually_exclusive_group()
    where.add_argument("--connect", metavar="URL", help="of a cluster that runs")
    where.add_argument(
        "--data", type=Path, metavar="DIR", help="of its own cluster, kept; never in memory"
    )
    cluster.add_argument("--shards", type=int, metavar="N", help=f"{SHARDS} if left out")
    cluster.add_argument("--workers", type=int, metavar="N", help="processes of each service")
    cluster.add_argument("--config", type=Path, metavar="FILE", help="TOML, as for `up`")
    add_result_arguments(parser)


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a load, whatever it is put on; a cluster of its own by default."""
    _load_arguments(parser.add_argument_group("load"))
    _mix_arguments(parser.add_argument_group("mix, percent of all checkouts"))
    parser.set_defaults(connect=None, data=None, shards=None, workers=None, config=None)


def add_result_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where a result is written."""
    told = parser.add_argument_group("result")
    told.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    told.add_argument("--force", action="store_true", help="replace FILE if it exists")


def _load_arguments(load: argparse._ArgumentGroup) -> None:
    loop = load.add_mutually_exclusive_group()
    loop.add_argument(
        "--in-flight",
        type=int,
        metavar="N",
        help=f"closed loop: so many at any time ({IN_FLIGHT} if neither is given)",
    )
    loop.add_argument(
        "--rate", type=float, metavar="R", help="open loop: so many start a second, come what may"
    )
    load.add_argument("--sagas", type=int, metavar="N", help="start so many")
    load.add_argument(
        "--duration", type=_seconds, metavar="T", help="start for so long: 30, 30s, 5m (10s)"
    )
    load.add_argument(
        "--warm-up",
        type=_seconds,
        default=WARM_UP_S,
        metavar="T",
        help=f"of the same load before, left out of every figure ({WARM_UP_S:g}s)",
    )
    load.add_argument(
        "--arrivals",
        choices=(EVEN, POISSON),
        default=EVEN,
        help="of the open loop: the same time apart, or each by itself (even)",
    )
    load.add_argument("--seed", type=int, default=1, help="of arrivals and order of the mix (1)")
    load.add_argument(
        "--generators",
        type=int,
        default=0,
        metavar="N",
        help="processes that make the load (one, more if one is not enough)",
    )
    load.add_argument(
        "--objective",
        type=int,
        default=OBJECTIVE_MS,
        metavar="MS",
        help=f"what takes longer is no goodput ({OBJECTIVE_MS})",
    )
    load.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT_S,
        metavar="T",
        help=f"a saga without an outcome for so long is an error ({TIMEOUT_S:g}s)",
    )


def _mix_arguments(mix: argparse._ArgumentGroup) -> None:
    mix.add_argument("--decline", type=float, default=0.0, metavar="P", help="payment declined")
    mix.add_argument("--out-of-stock", type=float, default=0.0, metavar="P", help="no stock")
    mix.add_argument(
        "--no-carrier", type=float, default=0.0, metavar="P", help="not shipped, refunded"
    )
    mix.add_argument(
        "--hot-sku", type=float, default=0.0, metavar="P", help="want the same; others spread"
    )
    mix.add_argument("--hot-units", type=int, metavar="N", help="of it there are N (a billion)")


def _seconds(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text[-1:] in {"s", "m", "h"} else (text, "s")
    try:
        return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"a time is like 30, 30s, 5m or 1h, not {text}") from None


def checked(given: argparse.Namespace) -> Options:
    """Check what was asked.

    Raises:
        Malformed: it cannot be done; the words say which option.
    """
    _within("--in-flight", given.in_flight, 1, IN_FLIGHT_MAX)
    _within("--rate", given.rate, 0.001, RATE_MAX)
    _within("--sagas", given.sagas, 1, SAGAS_MAX)
    _within("--duration", given.duration, 0.001, DURATION_MAX_S)
    _within("--warm-up", given.warm_up, 0, DURATION_MAX_S)
    _within("--generators", given.generators, 0, GENERATORS_MAX)
    _within("--objective", given.objective, 1, 3_600_000)
    _within("--timeout", given.timeout, 0.001, 3600)
    _within("--hot-units", given.hot_units, 0, STOCK)
    mix = Mix(given.decline, given.out_of_stock, given.no_carrier, given.hot_sku)
    mixes.check(mix)
    in_flight = 0 if given.rate is not None else given.in_flight or IN_FLIGHT
    if given.arrivals != EVEN and given.rate is None:
        raise Malformed("--arrivals is of the open loop: it needs --rate")
    if in_flight and given.generators > in_flight:
        raise Malformed(f"--generators {given.generators}: more than are in flight ({in_flight})")
    if given.connect is not None:
        for option in ("shards", "workers", "config", "hot_units"):
            if getattr(given, option) is not None:
                said = option.replace("_", "-")
                raise Malformed(f"--{said} is of a cluster of its own: not with --connect")
    if given.hot_units is not None and not given.hot_sku:
        raise Malformed("--hot-units is of what --hot-sku buys: it needs --hot-sku")
    if given.force and given.json is None:
        raise Malformed("--force replaces the file of --json: there is none")
    no_end = given.sagas is None and given.duration is None
    return Options(
        in_flight=in_flight,
        rate=given.rate or 0.0,
        sagas=given.sagas,
        duration_s=DURATION_S if no_end else given.duration,
        warm_up_s=given.warm_up,
        mix=mix,
        arrivals=given.arrivals,
        seed=given.seed,
        generators=given.generators,
        objective_ms=given.objective,
        timeout_s=given.timeout,
        connect=given.connect,
        data=given.data,
        shards=given.shards,
        workers=given.workers,
        config=given.config,
        json=given.json,
        force=given.force,
        hot_units=STOCK if given.hot_units is None else given.hot_units,
    )


def generators_of(options: Options) -> int:
    """Give how many generators a run begins with."""
    if options.generators:
        return options.generators
    return min(cores(), max(1, math.ceil(options.rate / RATE_OF_ONE)))


def cores() -> int:
    """Give how many generators can run at once."""
    return min(GENERATORS_MAX, len(os.sched_getaffinity(0)))


def _within(option: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not (math.isfinite(value) and least <= value <= most):
        raise Malformed(f"{option} is {least:g} to {most:g}, not {value:g}")
