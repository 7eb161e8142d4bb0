"""Sagas that belong to a client's trace; what they carry must not be seen again."""

from sagacity import wire
from shard.events import Requests
from tests.unit.world import CLIENT, World, order

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
SERVICES = ("inventory", "payment", "shipping")


def traced(world: World, saga_id: str, parent: str = PARENT) -> Requests:
    """Give the event of a start in a trace."""
    body = order(saga_id, user_id="mark-user", shipping_address="mark-address")
    return world.ask(wire.START, saga_id, body, CLIENT, {"traceparent": parent})


def ended(world: World, *saga_ids: str, parent: str = PARENT) -> None:
    """Start sagas in a trace, and have them end."""
    for saga_id in saga_ids:
        world.step(traced(world, saga_id, parent))
        world.drive(saga_id, wire.DECLINED)


def shop(*saga_ids: str) -> World:
    world = World()
    world.step(*world.came(*SERVICES))
    ended(world, *saga_ids)
    return world
