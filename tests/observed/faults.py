"""For each alert a fault that has to make it fire, and the time that it may take: one table.

What is asked: two evaluation intervals after the alert's `for`, after its fault is there. A fault
is there at once where an alert looks at a state. Where it looks at a share or a rate over a window,
the fault has to go on for a while before the share is above the limit; the table says how long that
takes under the load of its world, and why.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from cluster.observe import DECK
from cluster.prometheus import FILES
from tests.observed.sick import FAILS, NO_REFUNDS
from tests.observed.world import Deck, World

INTERVAL_S: Final = 5.0  # scrape_interval and evaluation_interval of prometheus.yml
WAIT_S: Final = 20.0
BIG: Final = ("u42", "abc123", "no_carrier", 1000)  # 100 000.00, refunded

_NEVER: Final = {"SAGACITY_SAGA__ATTEMPTS": "1000", "SAGACITY_SAGA__DEADLINE_MS": "3600000"}
_IMPATIENT: Final = {"SAGACITY_SAGA__ATTEMPTS": "1", "SAGACITY_SAGA__ATTEMPT_TIMEOUT_MS": "1000"}

_CHARGED: Final = (("u42", "abc123", "123 Main St"),)
_SLOW: Final = (("u_slow_2s", "abc123", "1 Slow St"),)
_DECLINED: Final = (("u999", "abc123", "1 Elm St"),)
_UNHEARD: Final = (("u_timeout", "abc123", "1 Far St"),)


class Fault(Struct, frozen=True):
    """A fault and its alert.

    Args:
        alert: its name.
        severity: of the one meant, where two have the name.
        what: the fault, for people.
        plant: does it to a world; returns when the fault is there.
        needs_s: until what the alert looks at is above its limit; 0: at once.
        why: it takes so long.
        env: of the world's cluster.
        deck: of its steady customers.
        steady_s: of the steady load before.
        recorded: the alert looks at a recorded rule, which is evaluated before it.
    """

    alert: str
    severity: str
    what: str
    plant: Callable[[World], None]
    needs_s: float = 0.0
    why: str = ""
    env: dict[str, str] = {}
    deck: Deck = DECK
    steady_s: float = 20.0
    recorded: bool = False

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return f"{self.alert}-{self.severity}"

    @property
    def for_s(self) -> float:
        """How long the alert's condition has to hold, as its file says."""
        return declared()[self.alert, self.severity]

    def limit_s(self, for_s: float) -> float:
        """Within how many seconds it has to fire; or to be pending, with 0 for its `for`."""
        return self.needs_s + for_s + 2 * INTERVAL_S + (INTERVAL_S if self.recorded else 0)


def declared() -> dict[tuple[str, str], float]:
    """Give the `for` of every alert in alerts.yml, seconds, by name and severity."""
    found: dict[tuple[str, str], float] = {}
    for block in re.split(r"\n +- alert: ", (FILES / "alerts.yml").read_text())[1:]:
        name = block.split("\n", 1)[0]
        (number, unit), *_ = re.findall(r"\n +for: (\d+)(s|m)\n", block)
        (severity,) = re.findall(r"severity: (\w+)\n", block)
        found[name, severity] = float(number) * {"s": 1, "m": 60}[unit]
    return found


def _some(rate: float, deck: Any) -> Callable[[World], None]:
    def plant(world: World) -> None:
        world.customers_of(rate, deck)

    return plant


def _sick(how: str) -> Callable[[World], None]:
    return lambda world: world.sicken(how)


def _no_refund(world: World) -> None:
    """One checkout turns back and cannot."""
    world.sicken(NO_REFUNDS)
    world.customers.come(*BIG)


def _stuck(world: World) -> None:
    _no_refund(world)
    with world.client() as client:
        world.turn_until(
            lambda: client.list(statuses=["stuck"], limit=1)["sagas"], WAIT_S, "a stuck checkout"
        )


FAULTS: Final = (
    Fault(
        "ErrorBudgetBurn",
        "page",
        "10 of 30 checkouts a second turn back by a time-out",
        _some(10, _UNHEARD),
        3.0,
        "1 s until the first times out, then 1.44 % of the starts of the window",
        _IMPATIENT,
        recorded=True,
    ),
    Fault(
        "ErrorBudgetBurn",
        "ticket",
        "10 of 30 checkouts a second turn back by a time-out",
        _some(10, _UNHEARD),
        3.0,
        "1 s until the first times out, then 0.6 % of the starts of the window",
        _IMPATIENT,
        recorded=True,
    ),
    Fault(
        "Slow",
        "ticket",
        "10 of 30 checkouts a second are charged 2 s late",
        _some(10, _SLOW),
        3.0,
        "2 s until the first ends, then 1 % of those that ended in the window",
        recorded=True,
    ),
    Fault(
        "Stuck",
        "page",
        "refunds fail; a checkout is stuck",
        _stuck,
        env={"SAGACITY_SAGA__STUCK_AFTER": "2"},
    ),
    Fault(
        "NotProgressing",
        "page",
        "charges fail, and are tried again for ever",
        _sick(FAILS),
        60.0,
        "it looks at a minute in which none ends",
        _NEVER,
        _CHARGED,  # who finds no stock ends without payment
    ),
    Fault(
        "CompensationSurge",
        "ticket",
        "40 of 60 checkouts a second are declined",
        _some(40, _DECLINED),
        2.0,
        "until it is 3 in 10 of the starts of the window",
        recorded=True,
    ),
    Fault("AmountAtRisk", "page", "a refund of 100 000.00 fails", _no_refund, 1.0, "a heartbeat"),
    Fault("ShardDown", "page", "shard 0 is killed and cannot own itself", lambda w: w.keep_down(0)),
    Fault(
        "JournalFailing",
        "page",
        "shard 0 is killed and ends at each start",
        lambda world: world.keep_down(0),
        5.0,
        "until its third end",
    ),
    Fault(
        "JournalSlow",
        "ticket",
        "each sync of shard 0 takes 150 ms more",
        lambda world: world.slow_syncs(0, 150),
        5.0,
        "until it is one in a hundred of the commits of the window",
        recorded=True,
    ),
    Fault(
        "WorkersSaturated",
        "page",
        "a charge takes 100 ms, a worker takes 4 commands a shard",
        _sick("100"),
        10.0,
        "until commands of a minute have waited 0.5 s on the average",
        {"SAGACITY_SERVICES__CREDIT": "4"},
        recorded=True,
    ),
    Fault(
        "BooksDoNotBalance",
        "page",
        "a row of payment is changed by hand",
        lambda world: world.change("payment", "UPDATE payment SET refunded = 1 WHERE id = 1"),
        4.0,
        "two rounds, of a second each: it is told when it was seen twice",
        {"SAGACITY_SUPERVISOR__BOOKS_EVERY_MS": "1000"},
        _CHARGED,
    ),
    Fault(
        "BooksUnread",
        "ticket",
        "no worker of payment works, whose books cannot be read then",
        lambda world: world.stop_payment(),
        300.0,
        "it looks at five minutes without a round",
    ),
    Fault("TargetMissing", "ticket", "the whole cluster is killed", lambda world: world.kill_all()),
)
