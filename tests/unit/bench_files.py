"""Result files that nobody measured: every bench's shape, from a seed, for reports of them."""

import random
from pathlib import Path
from typing import Any

import msgspec

from bench import result
from bench.histogram import Histogram
from bench.result import Machine, Mark, Percentiles, Result

MACHINE = Machine("synthetic", 2, 8192, "6.1", "3.11.9", 0.4, 50.0)
CPU = {"client": 18, "router": 8, "shard": 52, "inventory": 19, "payment": 17, "shipping": 16}


def a_run(rate: float = 5000.0, **changed: Any) -> Result:
    """Give a run; `settings` are added to the usual ones, `middle_ms` of latencies."""
    settings = {
        "loop": "closed",
        "in_flight": 1024,
        "rate": 0.0,
        "mix": {"decline": 10.0},
        "duration_s": 10.0,
        "generators": 1,
        "shards": 2,
        "own_cluster": True,
        "command": "sagacity bench run",
    } | changed.pop("settings", {})
    finished = int(rate * 10)
    latency = _latencies(changed.pop("middle_ms", 80.0), changed.pop("seed", 1))
    cpu = {role: float(us) for role, us in CPU.items()}
    found = Result(
        sagas_per_second=rate,
        goodput_per_second=rate * 0.99,
        wall_seconds=10.0,
        latency_ms=latency.percentiles(),
        completed=finished - finished // 10,
        aborted=finished // 10,
        balanced=True,
        cpu_us_per_saga=cpu | {"total": sum(cpu.values())},
        peak_rss_mb={"shard-0": 40.0},
        fsyncs_per_saga=0.05,
        commits=100,
        entries_per_commit=20.0,
        data_fs="ext4",
        version="0.1.0",
        commit="abc123",
        machine=MACHINE,
        settings=settings,
        latency_histogram=latency.encode(),
    )
    return msgspec.structs.replace(found, **changed)


def a_floor(rate: float = 5400.0, **changed: Any) -> Result:
    """Give a run of the floor: no books, no CPU but the generator's."""
    bare: dict[str, Any] = {
        "what": "floor",
        "balanced": None,
        "cpu_us_per_saga": {},
        "peak_rss_mb": {},
    }
    return a_run(rate, **bare | {"data_fs": None} | changed)


def sweep_in_flight(runs: int = 5, seed: int = 1) -> dict[str, Any]:
    """Give a sweep over in flight, ours and the floor."""
    chance = random.Random(seed)
    found: dict[str, list[Result]] = {}
    for many in (1, 8, 64, 256, 1024, 4096):
        for make, most in ((a_run, 6200.0), (a_floor, 7400.0)):
            side = f"{many} in flight" + (", floor" if make is a_floor else "")
            found[side] = [
                make(
                    round(most * many / (many + 22) * chance.uniform(0.94, 1.04), 1),
                    settings={"in_flight": many},
                    middle_ms=4 + many / 6,
                    seed=at,
                )
                for at in range(runs)
            ]
    return {"title": "sweep over in flight", "figures": [], "runs": found}


def sweep_rate(runs: int = 5) -> dict[str, Any]:
    """Give a sweep over the rate, past what it can do."""
    chance = random.Random(3)
    found = {}
    for rate in (1000, 2500, 4000, 5500, 7000, 12_000, 18_000):
        done = min(rate, 6000 * (1 - max(0, rate - 6000) / 80_000))
        found[f"{rate} a second"] = [
            a_run(
                round(done * chance.uniform(0.97, 1.0), 1),
                offered_per_second=float(rate),
                rate_reached=True,
                refused=max(0, rate - 6000) * 10,
                settings={"loop": "open", "in_flight": 0, "rate": float(rate)},
            )
            for _ in range(runs)
        ]
    return {"title": "sweep over rate", "figures": [], "runs": found}


def declines(runs: int = 5) -> dict[str, Any]:
    """Give the scenario `declines`."""
    chance = random.Random(4)
    found = {
        f"{share} %": [
            a_run(
                round((6200 - 4 * share) * chance.uniform(0.97, 1.02), 1),
                settings={"mix": {"decline": float(share)}},
            )
            for _ in range(runs)
        ]
        for share in (0, 10, 20, 30, 40, 50)
    }
    figure = {"what": "50 % / 0 %", "unit": "", "at_least": 0.95, "at_most": None}
    figure |= {"values": [0.97, 0.96, 0.968], "median": 0.968, "met": True, "why": ""}
    return {"title": "declines, 5 turns", "figures": [figure], "runs": found}


def failover(gap_tenths: int = 7) -> Result:
    """Give a run in which a shard was killed after 8 s."""
    chance = random.Random(5)
    counts = [int(300 * chance.uniform(0.9, 1.1)) for _ in range(160)]
    counts[80] = 100
    for at in range(81, 80 + gap_tenths):
        counts[at] = int(counts[at] * 0.45)
    counts[80 + gap_tenths] = 520
    return a_run(
        2900.0,
        settings={"loop": "open", "in_flight": 0, "rate": 3000.0},
        offered_per_second=3000.0,
        per_tenth=counts,
        marks=[Mark(8.02, "kill -9 shard-0")],
    )


def peers(runs: int = 5) -> list[Any]:
    """Give the table of the peers."""
    chance = random.Random(6)

    def a_peer(name: str, rate: float, in_flight: int, middle_ms: float) -> dict[str, Any]:
        told = {"p50": middle_ms, "p90": middle_ms * 1.6, "p99": middle_ms * 2.2}
        return {
            "peer": name,
            "services": "dictionaries",
            "in_flight": in_flight,
            "sagas": 2000,
            "decline": 10 if in_flight > 1 else 0,
            "sagas_per_second": rate * chance.uniform(0.95, 1.05),
            "wall_seconds": 4.0,
            "latency_ms": told | {"p999": middle_ms * 3, "max": middle_ms * 4},
            "completed": 1800,
            "aborted": 200,
            "errors": 0,
            "error_examples": [],
            "cpu_us_per_saga": {"server": 900.0, "services": 1400.0, "total": 2300.0},
            "settings": {"processes": 2},
            "durability": {"sync": "full"},
            "versions": {name: "1.0"},
            "data_fs": "ext4",
            "cores": 2,
        }

    ours = {"sagas_per_second": 6100.0, "p50_ms": 4.0, "p99_ms": 6.5, "cpu_us": 131.0}
    return [
        {
            "ours": ours | {"sagas_per_second": 6100.0 + 30 * at},
            "peers": {
                "restate": [a_peer("restate", 630, 64, 95), a_peer("restate", 80, 1, 11.6)],
                "temporal": [a_peer("temporal", 45, 32, 640), a_peer("temporal", 9, 1, 101)],
            },
        }
        for at in range(runs)
    ]


def write(folder: Path, **told: Any) -> list[Path]:
    """Write each as a file of its name; give the files."""
    files = []
    for name, each in told.items():
        file = folder / f"{name}.json"
        if isinstance(each, list):
            file.write_bytes(msgspec.json.encode(each))
        else:
            result.write(each, file)
        files.append(file)
    return files


def _latencies(middle_ms: float, seed: int) -> Histogram:
    chance = random.Random(seed)
    found = Histogram()
    for _ in range(2000):
        found.record_ns(int(middle_ms * 1e6 * chance.lognormvariate(0, 0.25)))
    for _ in range(6):
        found.record_ns(int(middle_ms * 3e6 * chance.uniform(1, 2)))
    assert found.percentiles() != Percentiles()
    return found
