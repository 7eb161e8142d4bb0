"""The metrics of a cluster at rest, held against each other (invariant 11). Knows no books."""

import urllib.request
from collections.abc import Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


def faults(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Check the metrics of processes.

    Args:
        rows: as `status` gives them; no saga may be running.

    Yields:
        What never should have happened and was counted; sagas that were counted in and not out;
        processes whose metrics do not answer.
    """
    for row in rows:
        name = f"{row['role']}-{row['index']}"
        try:
            counts = _counts(row["metrics_port"])
        except OSError as error:
            yield f"{name}: its metrics do not answer: {error}"
            continue
        if counts.get("saga_faults_total", 0):
            yield f"{name} has counted {counts['saga_faults_total']:g} faults"
        if row["role"] == "shard":
            came = counts["saga_started_total"] + counts["saga_recovered_total"]
            went = counts["saga_finished_total"]  # saga_active is as old as the last heartbeat
            if came != went:
                yield f"{name} counts {came:g} sagas that came and {went:g} that ended"


def _counts(port: int) -> dict[str, float]:
    """Give each metric's value, summed over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            counts[sample.name] = counts.get(sample.name, 0.0) + sample.value
    return counts
