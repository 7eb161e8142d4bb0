"""Saga, Step, Retry: checked when they are defined, not when they fail."""

from typing import Any

import msgspec
import pytest
from msgspec import Struct, defstruct

from sagacity.ids import STEPS_MAX
from sagacity.messages import Checkout
from sagacity.saga import Readers, Retry, Run, Saga, Step, tag_of
from services.checkout import checkout
from tests.unit.toy_sagas import chain

FIRST, SECOND = checkout.steps[:2]


def changed(what: Saga | Step, **fields: Any) -> Any:
    return msgspec.structs.replace(what, **fields)


@pytest.mark.parametrize("name", Retry.__struct_fields__)
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5", None])
def test_a_retry_is_made_of_positive_integers(name: str, value: object) -> None:
    """1.5 attempts or True milliseconds are typing errors."""
    with pytest.raises(ValueError, match=f"Retry.{name}"):
        Retry(**{name: value})  # type: ignore[arg-type]  # what a careless caller gives


def test_a_backoff_never_ends_below_its_beginning() -> None:
    """The doubling would have nowhere to go."""
    assert Retry(backoff_ms=50, backoff_max_ms=50).backoff_max_ms == 50
    with pytest.raises(ValueError, match="backoff_max_ms"):
        Retry(backoff_ms=51, backoff_max_ms=50)


def test_a_step_names_a_service() -> None:
    """It becomes a directory's, a metric's and a process's name."""
    with pytest.raises(ValueError, match=r"Step\.service"):
        changed(FIRST, service="my service")


@pytest.mark.parametrize("field", ["action", "ok", "declined", "compensation", "compensated"])
@pytest.mark.parametrize(
    "kind",
    [
        defstruct("Untagged", [("saga_id", str)]),
        defstruct("Elsewhere", [("saga_id", str)], tag_field="kind", tag="x"),
        defstruct("Numbered", [("saga_id", str)], tag_field="type", tag=7),
        int,
    ],
)
def test_a_steps_messages_say_their_type(field: str, kind: type[Struct]) -> None:
    """A body is told by its `type` alone."""
    with pytest.raises(ValueError, match=f"Step.{field}"):
        changed(FIRST, **{field: kind})


def test_a_step_is_called_like_its_messages() -> None:
    """Names of SPEC 1."""
    assert (FIRST.name, FIRST.compensation_name) == ("ReserveInventory", "ReleaseReservation")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "two words"}, "Saga.name"),
        ({"version": 0}, "Saga.version"),
        ({"steps": ()}, "1 to 15 steps"),
        ({"steps": (FIRST, FIRST)}, "different names"),
        ({"steps": (FIRST, changed(SECOND, compensation=FIRST.action))}, "different names"),
        ({"steps": (changed(FIRST, charges=True), SECOND)}, "at most one step"),
        ({"request": FIRST.ok}, None),
        ({"request": defstruct("No", [("x", int)], tag_field="type", tag="no")}, "saga_id"),
        ({"request": defstruct("No", [("saga_id", str)])}, "Saga.request"),
    ],
)
def test_a_definition_is_checked_when_it_is_made(fields: dict[str, Any], told: str | None) -> None:
    """An importing shard must fail, not a running saga."""
    if told is None:
        changed(checkout, **fields)
        return
    with pytest.raises(ValueError, match=told):
        changed(checkout, **fields)


def test_a_saga_has_at_most_as_many_steps_as_a_barrier_key_has_room_for() -> None:
    """Four bits."""
    assert len(chain("most", STEPS_MAX).steps) == STEPS_MAX
    with pytest.raises(ValueError, match="1 to 15 steps"):
        chain("more", STEPS_MAX + 1)


def test_a_definition_knows_what_starts_it() -> None:
    """The type of the client's body."""
    assert checkout.request_type == "checkout"
    assert tag_of(Checkout) == "checkout"
    assert tag_of(int) is None  # type: ignore[arg-type]  # what a careless caller gives


def test_a_run_reads_its_order_when_asked() -> None:
    """100 000 sagas in flight keep bytes, not objects."""
    run = Run("s", b"packed", lambda packed: packed.decode(), 5, "o1")
    assert (run.order, run.saga_id, run.amount, run.order_id) == ("packed", "s", 5, "o1")


def test_readers_read_what_each_step_promises() -> None:
    """One for each step and kind of body."""
    readers = Readers(checkout)
    body = msgspec.msgpack.encode(SECOND.compensated("s", 2))
    assert readers.compensated[1](body) == SECOND.compensated("s", 2)
    with pytest.raises(ValueError, match="type"):
        readers.compensated[0](body)


class Weighed(Struct, frozen=True, tag_field="type", tag="Weighed"):
    """A reply that no message body can carry."""

    saga_id: str
    step: int
    parts: list[dict[str, float]]


def test_a_body_that_could_not_be_shown_is_refused_when_it_is_defined() -> None:
    """Floats have no place on the wire; found at run time, it would be after the effect."""
    with pytest.raises(ValueError, match="a body carries no float, Weighed does"):
        changed(FIRST, ok=Weighed)
