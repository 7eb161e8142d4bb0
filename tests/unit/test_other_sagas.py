"""A saga other than checkout runs through the engine unchanged; so do two in one shard."""

from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from sagacity import wire
from sagacity.saga import Priced, Retry, Saga, Unstartable
from sagacity.testing import FOREVER, Decline, Fail, Silent, play
from services.checkout import checkout
from tests.unit.schedule import Schedule
from tests.unit.toy_sagas import booking, chain
from tests.unit.world import Rules, World, bodies, commands, order, replies, types

PAIR = chain("pair", 2)
TRIP = chain("trip", 5)
PRICES = {"abc123": 100}


@pytest.mark.parametrize(("plan", "steps"), [(PAIR, 2), (TRIP, 5), (chain("long", 15), 15)])
def test_a_chain_of_any_length_completes(plan: Saga, steps: int) -> None:
    """The engine knows steps, not checkouts; 15 is what a barrier key has room for."""
    played = play(plan, booking(plan.name, "x"), prices=PRICES)
    title = plan.name.capitalize()
    pairs = [[f"{title}{at}", f"{title}{at}_ok"] for at in range(1, steps + 1)]
    assert played.types == [*(each for pair in pairs for each in pair), f"{plan.name}_booked"]
    assert played.answer["paid"] == 300


@pytest.mark.parametrize("declined", range(1, 6))
def test_a_decline_undoes_the_steps_before_it_in_reverse(declined: int) -> None:
    """B11, at each step; the undo carries the ticket that the step's own reply gave."""
    played = play(
        TRIP, booking("trip", "x"), {f"Trip{declined}": Decline({"why": "full"})}, prices=PRICES
    )
    undone = [message for message in played.messages if message["type"].startswith("Undo")]
    asked = [each for each in undone if not each["type"].endswith("_ok")]
    assert [each["type"] for each in asked] == [f"UndoTrip{n}" for n in range(declined - 1, 0, -1)]
    assert all(each["ticket"] == "ticket" for each in asked)
    assert played.answer["why"] == f"Trip{declined}: full"


def test_a_step_whose_outcome_is_unknown_is_undone_without_its_ticket() -> None:
    """An unknown outcome is never taken for "not applied"."""
    played = play(PAIR, booking("pair", "x"), {"Pair2": Silent(FOREVER)}, prices=PRICES)
    assert played.messages[-5:-3] == [
        {"type": "UndoPair2", "saga_id": "x", "step": 2},
        {"type": "UndoPair2_ok", "saga_id": "x", "step": 2},
    ]
    assert played.answer["why"] == "Timed out: Pair2"


def test_a_step_has_retries_of_its_own() -> None:
    """Step.retry stands before the cluster's defaults."""
    plan = chain("brief", 2, retry=Retry(attempts=1))
    played = play(plan, booking("brief", "x"), {"Brief1": Fail(times=1)}, prices=PRICES)
    assert played.types == ["Brief1", "UndoBrief1", "UndoBrief1_ok", "brief_refused"]


def test_a_saga_that_cannot_be_priced_ends_at_once() -> None:
    """Unstartable is the definition's word, with the definition's reason."""
    played = play(TRIP, booking("trip", "x", nights=101), prices=PRICES)
    assert played.types == ["trip_refused"]
    assert played.answer["why"] == "too long"


def both() -> World:
    return World(Rules(plans=(checkout, TRIP)))


def test_two_definitions_live_in_one_shard() -> None:
    """The type of the body says which; numbers and ids are the shard's."""
    world = both()
    effects = world.step(
        *world.came(*sorted(world.engine.services())),
        world.start("a"),
        world.ask(wire.START, "b", booking("trip", "b")),
    )
    assert sorted(types(commands(effects))) == ["ReserveInventory", "Trip1"]
    assert bodies(world.drive("b", *[wire.OK] * 5))[0]["type"] == "trip_booked"
    assert bodies(world.drive("a", *[wire.OK] * 3))[0]["type"] == "checkout_complete"


def test_an_id_belongs_to_one_saga_whatever_its_definition() -> None:
    """A1, A3: the same id under another type is other content."""
    world = both()
    world.step(world.start("a"))
    again = world.step(world.ask(wire.START, "a", booking("trip", "a")))
    assert replies(again)[0][1] == 22


def test_submit_is_answered_in_the_words_of_the_definition() -> None:
    """Only a checkout is accepted as a checkout."""
    world = both()
    effects = world.step(world.ask(wire.SUBMIT, "b", booking("trip", "b")))
    assert bodies(effects) == [{"type": "trip_accepted", "saga_id": "b", "status": "RUNNING"}]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"type": "holiday", "saga_id": "b"}, 10),
        ({"saga_id": "b", "nights": 1}, 12),
        ({"type": 7}, 12),
        ({"type": "trip", "saga_id": "b"}, 12),
    ],
)
def test_a_type_that_starts_nothing_is_not_supported(body: dict[str, object], code: int) -> None:
    """SPEC 4: code 10 for the type, 12 for what the type forbids."""
    world = both()
    assert replies(world.step(world.ask(wire.START, "b", body)))[0][1] == code


@pytest.mark.parametrize("rules", [Rules(), Rules(plans=(checkout, TRIP))])
def test_a_body_nested_for_ever_is_malformed(rules: Rules) -> None:
    """G5: it must not end the process, whichever reader meets it first."""
    deep = b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"
    world = World(rules)
    assert replies(world.step(world.ask(wire.START, "b", deep)))[0][1] == 12


@pytest.mark.parametrize("seed", range(12))
def test_both_end_under_schedules_that_nobody_wrote(seed: int) -> None:
    """As test_engine_properties, with sagas of three and of five steps side by side."""
    starts = {"s0": order("s0"), "s1": order("s1")}
    starts |= {name: booking("trip", name) for name in ("t0", "t1")}
    schedule = Schedule(Random(seed).randbytes(250), Rules(plans=(checkout, TRIP)), starts)
    schedule.play()
    schedule.settle()
    state = schedule.world.engine.state
    assert len(state.finished) == state.count
    assert (state.compensating, state.stuck, state.at_risk) == (0, 0, 0)


class Mute(Exception):
    """Cannot be worded."""

    def __str__(self) -> str:
        raise ValueError("mute")


@pytest.mark.parametrize("function", ["accept", "price"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError("no \ud800"), "ValueError: no ?"),
        (ValueError("x" * 1_000_000), "ValueError: xxx"),
        (Mute(), "Mute"),
    ],
)
def test_a_start_that_the_definitions_own_code_cannot_take_is_a_bug_and_the_shard_lives(
    function: str, error: Exception, told: str
) -> None:
    """SPEC 4: code 13, whatever was raised; nothing is written, and the sagas beside go on."""

    def raises(*_: Any) -> Any:
        raise error

    world = World(Rules(plans=(replace(TRIP, **{function: raises}), checkout)))
    effects = world.step(
        *world.came(*sorted(world.engine.services())),
        world.ask(wire.START, "t", booking("trip", "t")),
        world.start("a"),
    )
    assert types(commands(effects)) == ["ReserveInventory"]
    ((_, code, body),) = replies(effects)
    assert code == 13
    assert body["text"].startswith(f"the definition trip raised {told}")
    assert len(body["text"]) < 300


WRONG = [
    *(("price", wrong) for wrong in (None, 7, Priced(3, 7), Priced(3, "\ud800"))),  # type: ignore[arg-type]  # a currency of 7
    *(("price", Priced(wrong)) for wrong in (-1, 9.99, True, "3", 1 << 63)),  # type: ignore[arg-type]  # likewise
    *(("price", Unstartable(wrong)) for wrong in (None, "\ud800", "x" * 5_000)),  # type: ignore[arg-type]  # likewise
    *(("accept", wrong) for wrong in (None, TRIP.order("t", "x"), TRIP.order("\ud800", 3))),
    *(("accept", wrong) for wrong in (TRIP.order("t", object()), TRIP)),
]


@pytest.mark.parametrize(("function", "gives"), WRONG)
def test_what_no_restart_could_read_is_not_written(function: str, gives: object) -> None:
    """F6: a price of 9.99 stood in the journal as a float, and its shard never started again."""
    world = World(Rules(plans=(replace(TRIP, **{function: lambda *_: gives}), checkout)))
    effects = world.step(world.ask(wire.START, "t", booking("trip", "t")), world.start("a"))
    assert [code for _, code, _ in replies(effects)] == [13]
    world.restart()
    assert list(world.engine.state.by_id) == ["a"]


def test_an_order_that_a_definition_made_anew_is_the_one_that_a_restart_reads() -> None:
    """And what its fingerprint is of: the request's own bytes do not matter."""
    plan = replace(TRIP, accept=lambda asked: TRIP.order(asked.saga_id, asked.nights + 1))
    world = World(Rules(plans=(plan,)))
    world.step(world.ask(wire.START, "t", booking("trip", "t")))
    assert world.engine.state.by_id["t"].run.order == TRIP.order("t", 4)
    world.restart()
    assert world.engine.state.by_id["t"].run.order == TRIP.order("t", 4)
