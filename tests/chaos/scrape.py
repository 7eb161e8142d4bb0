"""Takes the measure of processes: what they serve as /metrics, their memory, files and threads."""

import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from sagacity.checker.record import Recorder

ANSWERS_S: Final = 60.0  # a machine under load is slow; who does not answer at all is no figure


def samples(row: Mapping[str, Any]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Give each series that a process serves, by name and labels.

    Args:
        row: of a process, as `status` gives it.

    Raises:
        OSError: it does not answer.
    """
    address = f"http://127.0.0.1:{row['metrics_port']}/metrics"
    with urllib.request.urlopen(address, timeout=ANSWERS_S) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


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
            recorder.metrics(name, pid, _counts(row))
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


def _counts(row: Mapping[str, Any]) -> dict[str, float]:
    """Give each metric's value, summed over its labels."""
    counts: dict[str, float] = {}
    for (name, _), value in samples(row).items():
        counts[name] = counts.get(name, 0.0) + value
    return counts
