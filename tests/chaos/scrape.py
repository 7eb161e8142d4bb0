"""Takes the measure of a cluster's processes for the record: metrics, memory, files, threads."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from checker.record import Recorder


def record(rows: list[dict[str, Any]], recorder: Recorder) -> Iterator[str]:
    """Write down what each process serves as /metrics, and what it takes of the machine.

    Args:
        rows: of processes, as `status` gives them.
        recorder: of the client's record.

    Yields:
        Processes whose metrics do not answer.
    """
    for row in rows:
        name, pid = f"{row['role']}-{row['index']}", row["pid"]
        try:
            recorder.metrics(name, pid, _counts(row["metrics_port"]))
            recorder.usage(name, pid, *_usage(pid))
        except OSError as error:
            yield f"{name}: it cannot be measured: {error}"


def _usage(pid: int) -> tuple[int, int, int]:
    """Give a process's memory in bytes, its open files and its threads."""
    process = Path(f"/proc/{pid}")
    lines = (line.split() for line in (process / "status").read_text().splitlines())
    said = {words[0]: words[1] for words in lines if len(words) > 1}
    files = len(list((process / "fd").iterdir()))
    return int(said["VmRSS:"]) * 1024, files, int(said["Threads:"])


def _counts(port: int) -> dict[str, float]:
    """Give each metric's value, summed over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            counts[sample.name] = counts.get(sample.name, 0.0) + sample.value
    return counts
