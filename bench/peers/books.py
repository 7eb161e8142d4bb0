"""The books of a peer's services, checked: a peer that is wrong is no measurement. Pure but for
the reading of files.

Completed is reserved, charged the cart's price and shipped, each once, and nothing undone; aborted
is reserved and released once, never charged or shipped; what ended in an error is counted apart.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from bench.peers.programs import ledger

AMOUNT: Final = ledger.price(list(ledger.CART))
FAULTS_MAX: Final = 5  # told; the others are counted
_EXPECTED: Final[Mapping[str, Counter[str]]] = {
    "COMPLETED": Counter(reserve=1, charge=1, ship=1),
    "ABORTED": Counter(reserve=1, release=1),
}


def read(folder: Path) -> list[tuple[str, str, int]]:
    """Give (effect, id, amount) of all processes' files in a folder."""
    found = []
    for file in sorted(folder.glob("effects-*")):
        for line in file.read_text().splitlines():
            effect, saga_id, amount = line.split()
            found.append((effect, saga_id, int(amount)))
    return found


def faults(
    outcomes: Iterable[tuple[str, bool, str]], effects: Iterable[tuple[str, str, int]]
) -> list[str]:
    """Give what is wrong; nothing if the books balance.

    Args:
        outcomes: of each checkout: id, whether it was to be declined, what the client was told.
        effects: as `read` gives them.
    """
    done: dict[str, Counter[str]] = {}
    found: list[str] = []
    for effect, saga_id, amount in effects:
        done.setdefault(saga_id, Counter())[effect] += 1
        if effect == "charge" and amount != AMOUNT:
            found.append(f"{saga_id} was charged {amount}, not {AMOUNT}")
    told: set[str] = set()
    for saga_id, declined, outcome in outcomes:
        if saga_id in told:
            found.append(f"{saga_id} was asked for twice")
        told.add(saga_id)
        if outcome not in _EXPECTED:
            continue  # an error: counted, and nothing was promised
        if declined != (outcome == "ABORTED"):
            found.append(f"{saga_id} is {outcome}, declined: {declined}")
        if (effects_of := done.get(saga_id, Counter())) != _EXPECTED[outcome]:
            found.append(f"{saga_id} is {outcome}, its effects are {dict(effects_of)}")
    found += [f"{saga_id} has effects, and nobody asked" for saga_id in done if saga_id not in told]
    return found
