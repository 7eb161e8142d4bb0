"""Two routers before one real shard process: what both ask at the same moment is one saga."""

import zmq

from sagacity import sockets, wire
from tests.integration.shard_world import ShardWorld, opened
from tests.unit.world import order

IDS = 60


def cart(saga_id: str, other: int) -> dict[str, object]:
    """Give a start's body; another content for another number."""
    return order(saga_id, shipping_address=f"{1 + other} Main St")


def replies_of(world: ShardWorld, router: sockets.Socket, count: int) -> list[wire.Reply]:
    """Wait for so many replies, in the order of their requests."""
    found: dict[int, wire.Reply] = {}

    def all_there() -> bool:
        for frame in sockets.receive_all(router, 1000)[0]:
            found.update((reply.request, reply) for reply in wire.read_replies(frame))
        return len(found) == count

    world.until(all_there, f"{count} replies to one of two routers")
    return [found[number] for number in sorted(found)]


def test_the_same_start_at_two_routers_at_once_is_one_saga() -> None:
    """A4: both get the same bytes; where the carts differ, one of them is told 22, whose it was."""
    with opened() as world:
        world.started()
        routers = [sockets.dealer(world.ctx, world.run.shard(0)) for _ in range(2)]
        for router in routers:
            assert router.poll(5000, zmq.POLLOUT), "no connection"
        asked = [[(f"s{at}", at % 2 * number) for at in range(IDS)] for number in range(2)]
        for router, each in zip(routers, asked, strict=True):
            frame = wire.encode(
                [
                    wire.Request(wire.START, saga_id, at, {}, wire.pack(cart(saga_id, other)))
                    for at, (saga_id, other) in enumerate(each)
                ]
            )
            assert sockets.send(router, frame)
        one, two = (replies_of(world, router, IDS) for router in routers)
        same = [(one[at], two[at]) for at in range(0, IDS, 2)]
        other = [(one[at], two[at]) for at in range(1, IDS, 2)]
        assert all(a.code is None and a.body == b.body for a, b in same)
        assert [sorted((a.code or 0, b.code or 0)) for a, b in other] == [[0, 22]] * len(other)
        assert len(world.workers["payment"].effects) == IDS
        for router in routers:
            router.close()
