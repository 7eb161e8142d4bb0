"""The best settings of a peer: what does most, found by trying; kept beside its environment."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from bench.peers.errors import PeerError, Refused
from bench.peers.peer import Peer
from bench.peers.result import Result, Settings


class Best(Struct, frozen=True):
    """What a sweep found.

    Args:
        settings: all of them.
        in_flight: at which it does most.
    """

    settings: Settings
    in_flight: int


def sweep(
    peer: Peer, start: Best, run: Callable[[Settings, int], Result], tell: Callable[[str], None]
) -> Best:
    """Try numbers in flight, then the grid, then numbers in flight again; keep what is better.

    A coordinate at a time: what helps is kept while the next is tried. What fails is told and
    passed over.
    """
    best, rate = start, 0.0
    tried: list[Best] = []
    for trial in trials(peer, best):
        candidate = Best({**best.settings, **trial.settings}, trial.in_flight or best.in_flight)
        if candidate in tried:
            continue
        tried.append(candidate)
        try:
            result = run(candidate.settings, candidate.in_flight)
        except Refused:
            raise  # no other setting would help
        except PeerError as error:
            tell(f"passed over: {candidate.settings} at {candidate.in_flight}: {error}")
            continue
        tell(result.line())
        if result.errors == 0 and result.sagas_per_second > rate:
            best, rate = candidate, result.sagas_per_second
    if not rate:
        raise PeerError(f"nothing that was tried on {peer.name} worked")
    return best


def trials(peer: Peer, start: Best) -> list[Best]:
    """Give what is tried, in order; 0 in flight for what is best so far."""
    flights = [Best({}, number) for number in peer.flights]
    grid = [Best(settings, 0) for settings in peer.grid]
    return [Best(start.settings, start.in_flight), *flights, *grid, *flights]


def load(folder: Path, peer: Peer) -> Best:
    """Give what a sweep found here, or what is known from elsewhere."""
    file = _file(folder, peer)
    known = Best(dict(peer.best), peer.in_flight)
    if not file.is_file():
        return known
    told = json.loads(file.read_text())
    if told["settings"].keys() != peer.best.keys():
        return known  # of another version of this program
    return Best(told["settings"], told["in_flight"])


def save(folder: Path, peer: Peer, best: Best) -> Path:
    """Keep what a sweep found."""
    file = _file(folder, peer)
    file.write_text(json.dumps({"settings": best.settings, "in_flight": best.in_flight}) + "\n")
    return file


def names(peers: Sequence[Peer]) -> str:
    """Give their names, for a reader."""
    return ", ".join(peer.name for peer in peers)


def _file(folder: Path, peer: Peer) -> Path:
    return folder / f"best-{peer.name}.json"
