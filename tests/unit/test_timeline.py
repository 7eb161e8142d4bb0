"""The timeline of `show`: lanes of a saga's steps, for each way in which one can end or stand."""

from typing import Any

import pytest

from cluster import render
from cluster.story import page
from cluster.timeline import BAR, COLUMNS
from sagacity import wire
from sagacity.saga import Retry
from tests.unit.world import Rules, World, bodies

SERVICES = ("inventory", "payment", "shipping")


def shown(world: World, saga_id: str = "a") -> dict[str, Any]:
    return bodies(world.step(world.ask(wire.SHOW, saga_id)))[0]


def lines(body: dict[str, Any]) -> list[str]:
    told = page(body).splitlines()
    assert all(line.isprintable() and line == line.rstrip() for line in told)
    assert all(len(line) <= COLUMNS for line in told)
    return told


def lane(told: list[str], name: str) -> tuple[str, str]:
    """Give a lane's bar, and what stands behind it."""
    [line] = [line for line in told if line[4:].startswith(f"{name} ")]
    before, bar, after = line.split("|")
    assert before
    assert len(bar) == BAR
    return bar, " ".join(after.split())


def begun(rules: Rules | None = None) -> World:
    world = World(rules)
    world.step(*world.came(*SERVICES), world.start("a"))
    return world


def drive(world: World, *outcomes: tuple[int, int]) -> World:
    """Let time pass and a command be answered, for each (milliseconds, outcome)."""
    for after_ms, outcome in outcomes:
        world.after(after_ms)
        world.step(*world.beats())
        world.drive("a", outcome)
    return world


def test_actions_stand_above_and_compensations_below() -> None:
    """A decline: what it looks like as a whole."""
    told = lines(shown(drive(begun(), (12, wire.OK), (8, wire.DECLINED), (11, wire.OK))))
    assert told[0] == "a  ABORTED  order o1603  amount 249.99"
    assert told[1].endswith(", took 0.031 s")
    assert told[2:] == [
        "",
        "                        0                        0.031 s",
        "actions",
        "  1 ReserveInventory   |=============                   |     0.012 s  ok",
        (
            "  2 ChargePayment      |            =========           |     0.008 s  "
            "declined: business, DECLINED"
        ),
        "turned back            |                    ^           |    +0.020 s  declined",
        "compensations",
        "  1 ReleaseReservation |                    ============|     0.011 s  ok",
        "",
        (
            "Payment was declined (DECLINED), so the reservations r1-1, r1-2 were released; the "
            "customer was told"
        ),
        "'Payment declined: DECLINED'.",
        "Money: price 249.99; nothing taken by ChargePayment.",
        "Everything it had done is undone.",
    ]


def test_a_completed_saga_has_actions_alone() -> None:
    told = lines(shown(drive(begun(), (10, wire.OK), (10, wire.OK), (10, wire.OK))))
    assert "compensations" not in told
    assert [lane(told, name)[1] for name in ("ReserveInventory", "CreateShipment")] == [
        "0.010 s ok",
        "0.010 s ok",
    ]
    assert told[-1] == "It completed: every step succeeded."


def test_attempts_stand_below_their_lane_and_show_in_its_bar() -> None:
    """What failed, when, and why; the lane says which attempt it was in the end."""
    told = lines(shown(drive(begun(), (500, wire.FAILED), (500, wire.OK))))
    bar, after = lane(told, "ReserveInventory")
    assert (bar.count("x"), after) == (1, "1.000 s ok, attempt 2")
    assert "          +0.500 s  attempt 1 failed: no luck" in told


def test_a_running_saga_shows_what_it_waits_for() -> None:
    told = lines(shown(drive(begun(), (10, wire.OK))))
    assert told[1].endswith(", last change after 0.010 s")
    assert lane(told, "ChargePayment") == (" " * (BAR - 1) + ">", "0.000 s no answer yet")
    assert "ChargePayment has no answer yet." in " ".join(told)
    assert "It is running." in told


def test_a_stuck_saga_shows_the_first_and_the_last_attempts() -> None:
    """A bounded answer, however often it was tried; who asked for more is told, too."""
    rules = Rules(retry=Retry(stuck_after=3, backoff_ms=1, backoff_max_ms=1))
    world = drive(begun(rules), (1, wire.OK), (1, wire.DECLINED))
    for _ in range(30):
        world.drive("a", wire.FAILED)
        world.after(1_000)
        world.step(*world.beats())
    world.step(world.ask(wire.RETRY, "a", {"type": "retry", "saga_id": "a", "reason": "mended"}))
    told = lines(shown(world))
    assert told[0].startswith("a  COMPENSATING  STUCK")
    bar, after = lane(told, "ReleaseReservation")
    assert (bar[-1], after) == (">", "30.000 s no answer yet, attempt 30")
    at = told.index("compensations") + 2
    assert told[at].endswith("attempt 1 failed: no luck")
    assert told[at + 3].endswith("more, see --events")
    assert told[at + 6].endswith("asked to try again: mended")
    assert "It is stuck: ReleaseReservation does not succeed; a person has to look." in told
    assert len(told) < 30


def test_an_unknown_outcome_is_said_and_compensated() -> None:
    """Deadline: the action may have happened; a late answer would say so."""
    world = drive(begun(), (10, wire.OK))
    world.after(31_000)
    world.step(*world.beats())
    told = lines(shown(world))
    assert lane(told, "ChargePayment")[1] == "31.000 s unknown"
    [turn] = [line for line in told if line.startswith("turned back")]
    assert turn.endswith("+31.010 s  deadline")
    assert lane(told, "RefundPayment")[1].endswith("no answer yet")
    late = world.take(b"payment", "a", direction=0)
    world.after(90)
    world.step(world.reply(b"payment", late, wire.OK))
    assert lane(lines(shown(world)), "ChargePayment")[1] == "31.090 s ok, late"


def test_a_quarantine_stands_below_its_lane() -> None:
    """Else a compensation that nobody gets any more looks like one that is tried."""
    body = shown(drive(begun(), (1, wire.OK), (1, wire.DECLINED)))
    at = {"at_ms": body["history"][-1]["at_ms"] + 40, "step": 1, "direction": "compensation"}
    body["history"].append({**at, "event": "quarantined", "attempt": 1, "deaths": 3})
    told = lines(body)
    assert lane(told, "ReleaseReservation")[1] == "0.040 s no answer yet"
    below = told[told.index("compensations") + 2].split()
    assert " ".join(below) == "+0.042 s quarantined: 3 workers died of it"
    assert "quarantined" in render.saga(body)
    assert "3 workers died of it" in render.saga(body)


def test_a_cancelled_saga_says_so() -> None:
    world = begun()
    cancel = {"type": "cancel", "saga_id": "a", "reason": "changed my mind"}
    world.step(world.ask(wire.CANCEL, "a", cancel))
    told = lines(shown(drive(world, (5, wire.OK))))
    assert any(line.startswith("turned back") and line.endswith("cancelled") for line in told)
    assert "It was cancelled (changed my mind), so" in " ".join(told)
    assert "the customer was told 'Cancelled: changed my mind'." in " ".join(told)


def test_a_saga_that_sent_nothing_has_no_lanes() -> None:
    """A cart that cannot be priced."""
    world = World()
    world.step(world.start("a", items=[{"sku": "zzz", "quantity": 1}]))
    told = lines(shown(world))
    assert told[2:] == [
        "",
        (
            "The cart could not be priced (Unknown SKU: zzz): no command was sent; the customer "
            "was told 'Unknown"
        ),
        "SKU: zzz'.",
        "Nothing had been done that had to be undone.",
    ]


def test_text_from_outside_cannot_steer_a_terminal_or_break_the_lines() -> None:
    """Reasons, errors and ids come from clients and services."""
    evil = "\x1b[2J\u202e\n" * 40
    body = shown(drive(begun(Rules(retry=Retry(attempts=1))), (1, wire.FAILED), (1, wire.FAILED)))
    for event in body["history"]:
        for key in ("text", "reason", "cause", "outcome"):
            if key in event:
                event[key] = evil
        if event["event"] == "command":
            event["body"]["type"] = evil
    body["reason"] = evil
    told = page(body)
    assert all(line.isprintable() for line in told.split("\n"))
    assert len(told.split("\n")) < 60


@pytest.mark.parametrize("shift", [-3_600_000, 3_600_000])
def test_a_clock_that_was_set_leaves_no_bar(shift: int) -> None:
    """Times are wall times; they may go back, and by years."""
    body = shown(drive(begun(), (10, wire.OK), (10, wire.OK), (10, wire.OK)))
    body["history"][3]["at_ms"] += shift
    bar, _ = lane(lines(body), "ChargePayment")
    assert len(bar) == BAR


def test_a_history_without_events_still_says_what_is_known() -> None:
    body = {"saga_id": "a", "status": "RUNNING", "amount": 0, "history": []}
    assert page(body).splitlines()[0] == "a  RUNNING  amount 0.00"
