"""Has the journals of a stopped cluster read by whoever knows their format: `python -m shard`.

Keeps the cluster from starting meanwhile, and gives what was found as a report. Knows no format.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.directory import DataDirectory
from sagacity.errors import InternalError

ADVICE = (
    "Leave the directory as it is, and copy it before anything else. A shard with a damaged "
    "journal does not start; what is known to be whole is the last backup of the whole directory, "
    "journals and services together, taken while the cluster was stopped."
)


_COMMAND = (sys.executable, "-P", "-m", "shard", "verify")


def verify(path: Path) -> dict[str, Any]:
    """Verify a stopped cluster's journals.

    Returns:
        The report of `journal verify --json`: `verified`, `data`, `shards`, of each the shard,
        finished, checkpoint, rows, last_seq, chain, epoch and faults.

    Raises:
        Conflict: the cluster runs.
        Malformed: the directory holds none.
    """
    data = DataDirectory(path)
    with data.kept_still():
        ended = subprocess.run(  # noqa: S603 - no shell, and the command is our own
            [*_COMMAND, "--data", str(data.path), "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
        )
    if ended.returncode != 0:
        text = f"the journals were not read (exit code {ended.returncode}); why stands above"
        raise InternalError(text)
    shards = [json.loads(line) for line in ended.stdout.splitlines()]
    return {
        "type": "journal",
        "verified": not any(shard["faults"] for shard in shards),
        "data": str(data.path),
        "shards": shards,
    }
