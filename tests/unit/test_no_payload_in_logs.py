"""What clients send stands in no log: not in the words of a broken invariant, nor of a handler."""

import inspect
from typing import Any, get_args

import pytest
from apsw import Connection
from msgspec import Struct

from sagacity import wire
from sagacity.errors import InvariantBroken, broken
from sagacity.executor import BatchExecutor, make_tables
from sagacity.service import Call, Database, Result, Service
from sagacity.wire import Commands, Witness
from shard.entries import Batch, Entry
from tests.unit.service_world import CLUSTER_ID, Put, Take, put_command, toy

MARK = "unmistakable-mark"
RECORDS: list[type[Struct]] = [
    *(each for _, each in inspect.getmembers(wire, inspect.isclass) if issubclass(each, Struct)),
    *get_args(Entry),
    Batch,
]


class Fields:
    """A log that keeps every word."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, event: str, **fields: Any) -> None:
        self.said.append(f"{event} {fields}")

    warning = error = info


def marked(kind: type[Struct]) -> Struct:
    """Give a record whose every member but numbers and ids is the mark."""
    annotations = inspect.get_annotations(kind)
    return kind(
        *(
            1 if annotations[name] is int else "s" if name == "saga_id" else MARK
            for name in kind.__struct_fields__
        )
    )


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_a_broken_invariant_shows_numbers_and_ids_of_a_record_and_nothing_else(
    kind: type[Struct],
) -> None:
    """Its words go to the log: an entry holds a cart, a user and an address."""
    carries = set(inspect.get_annotations(kind).values()) - {int} != set()
    assert (MARK in repr(marked(kind))) == carries
    with pytest.raises(InvariantBroken) as raised:
        broken("what must hold does not", seen=marked(kind), seq=7)
    text = str(raised.value)
    assert MARK not in text
    assert text.startswith(f"what must hold does not seen={kind.__name__}(")
    assert text.endswith(" seq=7")


@pytest.mark.parametrize("value", [MARK.encode(), [MARK], (MARK,), {MARK: MARK}, {MARK}])
def test_a_broken_invariant_tells_how_much_of_bytes_and_containers_there_was(value: object) -> None:
    """Bodies travel as bytes."""
    with pytest.raises(InvariantBroken, match=r"seen=<(\d+ bytes|\w+ of 1)>"):
        broken("it", seen=value)


def test_what_a_handler_raises_is_logged_by_type_and_place_without_its_words() -> None:
    """A user's code quotes what it was given; where it broke is what helps."""

    def put(_: Database, call: Call[Put]) -> Result:
        raise ValueError(f"no such thing: {call.body.how}")

    service = Service("toy", toy.schema, {Put: put}, {Take: toy.compensations[Take]})
    log, connection = Fields(), Connection(":memory:")
    make_tables(connection, service, CLUSTER_ID)
    executor = BatchExecutor(connection, service, log)
    answers = executor.execute(
        [Commands(Witness(CLUSTER_ID, 0, 1, 1, bytes(16), 0), [put_command(how=MARK)])]
    )
    assert answers[0][0].outcome == wire.FAILED
    assert len(log.said) == 1
    assert "handler_raised" in log.said[0]
    assert "'ValueError'" in log.said[0]
    assert f"{__file__}:" in log.said[0]
    assert " put" in log.said[0]
    assert MARK not in log.said[0]
    executor.close()
