"""The cluster that a run measures: one that is there, or one of its own on a disk."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench import carts, options, place
from bench.options import Options
from cluster.private import ClusterProcess, start_private
from sagacity.client import Client

_SERVES_S: Final = 300.0
_QUIET: Final = {"SAGACITY_LOG": "error"}  # processes that end are no news here


class Host:
    """The cluster that is measured.

    Args:
        url: its router's address.
        own: the process, if it is the run's own.
    """

    def __init__(self, url: str, own: ClusterProcess | None) -> None:
        self.url, self.own = url, own
        self.keep = False  # its directory: there is something to look into

    @property
    def directory(self) -> Path | None:
        """Where a cluster of our own has its files."""
        return None if self.own is None else self.own.data

    @property
    def ended(self) -> bool:
        """Whether its supervisor has ended, as far as we see it."""
        return self.own is not None and self.own.process.poll() is not None

    def status(self, wait_s: float) -> dict[str, Any]:
        """Ask it how it is.

        Raises:
            SagacityError: it does not say.
        """
        with Client(self.url, timeout_s=wait_s) as client:
            return client.status()


@contextmanager
def hosted(asked: Options) -> Iterator[Host]:
    """Give the cluster of --connect, or one of our own until the end of the block."""
    if asked.connect is not None:
        yield Host(asked.connect, None)
        return
    if asked.data is not None:
        place.require_disk(asked.data.absolute())
    data = place.new_directory() if asked.data is None else asked.data
    made = asked.data is None
    host: Host | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="sagacity-bench-") as beside:
            words, env = _cluster_words(asked, data), dict(_QUIET)
            if asked.mix.hot_sku:
                goods = Path(beside) / "catalog.toml"
                goods.write_text(carts.catalog(asked.hot_units))
                env["SAGACITY_CLUSTER__CATALOG"] = str(goods)
            own = start_private(data, arguments=words, env=env, timeout_s=_SERVES_S)
            host = Host(own.url, own)
            with own:
                yield host
    finally:
        if made and not (host is not None and host.keep):
            shutil.rmtree(data, ignore_errors=True)


def _cluster_words(asked: Options, data: Path) -> list[str]:
    shards = asked.shards
    if shards is None and asked.config is None and not (data / "cluster.json").exists():
        shards = options.SHARDS
    words = [] if shards is None else ["--shards", str(shards)]
    words += [] if asked.workers is None else ["--workers", str(asked.workers)]
    return words + ([] if asked.config is None else ["--config", str(asked.config)])
