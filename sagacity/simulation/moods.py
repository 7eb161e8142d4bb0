"""Moods: what a simulation does to the handlers of a service. A sick service fails, now by saying
so, now by raising; a poison command kills its worker each time it is run. Both end with the faults.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, structs

from sagacity.service import Call, Database, Failed, Handler, Result, Service
from sagacity.simulation.world import World

POISON = "-poison"  # and step and direction: stands in the id of a saga with a poison command


class Moods:
    """The moods of all services.

    Args:
        world: whose time and chance they use.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.sick_until: dict[str, int] = {}
        self.poisonous = True
        self.failed = self.killed = 0

    def end(self) -> None:
        """From now on every handler does what it should."""
        self.sick_until.clear()
        self.poisonous = False

    def moody(self, service: Service) -> Service:
        """Give the service with handlers that have moods."""
        return structs.replace(
            service,
            actions=self._moody(service.name, service.actions),
            compensations=self._moody(service.name, service.compensations),
        )

    def _moody(
        self, name: str, handlers: Mapping[type[Struct], Handler]
    ) -> dict[type[Struct], Handler]:
        return {kind: self._handler(name, handler) for kind, handler in handlers.items()}

    def _handler(self, name: str, handler: Handler) -> Handler:
        def handle(db: Database, call: Call[Any]) -> Result:
            if self.sick_until and self._is_sick(name):
                if self._world.random.random() < 0.5:
                    raise RuntimeError("sick")
                return Failed("sick")
            if POISON in call.saga_id and self.poisonous:
                compensates = hasattr(call.body, "compensating")
                if call.saga_id.endswith(f"{POISON}{call.step}{int(compensates)}"):
                    self.killed += 1
                    self._world.kill(self._world.current)
            return handler(db, call)

        return handle

    def _is_sick(self, name: str) -> bool:
        if self._world.now >= self.sick_until.get(name, 0):
            return False
        self.failed += 1
        return True
