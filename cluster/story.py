"""The story of a saga: what `show` says of it in words, for people. Pure; knows no socket, no file.

    Payment was declined (DECLINED), so the reservation r3 was released; the customer was told
    'Payment declined: DECLINED'.

Told from the answer to SHOW alone. The checkout's steps have words of their own, those of other
sagas are called by their commands' names. `timeline` draws, `storypage` is the same for a browser.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from cluster.render import headline, moment, plain, reasons, seconds, traced
from cluster.timeline import COLUMNS, NAMELESS, Lane, Lanes, drawn, lanes_of
from sagacity import money

IDS_TOLD: Final = 3  # of one step's things
RUNBOOK: Final = "docs/runbooks/Stuck.md"
PAST_RETENTION: Final = (
    "A saga with this id ended, completed or aborted, longer ago than outcomes are kept "
    "(shard.retention_ms, 7 days unless configured); what it did, the services' own tables may "
    "still tell. The id never runs again: a new checkout needs a new id."
)

_STATUSES: Final = ("RUNNING", "COMPENSATING", "COMPLETED", "ABORTED")

Body = Mapping[str, Any]


class Words(Struct, frozen=True):
    """How people speak of a step of the checkout.

    Args:
        thing: what its success makes.
        ids_in: the key of the reply that names it.
        made: how.
        undone: by its compensation.
        declined: of a business no.
    """

    thing: str
    ids_in: str
    made: str
    undone: str
    declined: str


_WORDS: Final = {
    "ReserveInventory": Words(
        "reservation", "reservations", "made", "released", "The stock did not suffice"
    ),
    "ChargePayment": Words("payment", "payment_id", "taken", "refunded", "Payment was declined"),
    "CreateShipment": Words("shipment", "shipment_id", "created", "cancelled", "Shipping refused"),
}


class Story(Struct):
    """What is to be said of a saga, whatever it is written on.

    Args:
        why: one or more sentences: what happened, from what cause, and what the customer was told.
        money: what was taken and given back; empty where no command names an amount.
        verdict: how it stands, in a few words.
        advice: what a person can do; none where nothing is to be done.
    """

    why: str
    money: str
    verdict: str
    advice: tuple[str, ...]


def page(body: Body) -> str:
    """Write the answer to SHOW as one page for a terminal."""
    lanes = lanes_of(body.get("history", []))
    told = story_of(body, lanes)
    lines = [headline(body)]
    if body.get("history"):
        lines.append(times(lanes))
    lines += [*traced(body), ""]
    drawing = drawn(lanes)
    lines += [*drawing, ""] if drawing else []
    lines += textwrap.wrap(told.why, COLUMNS, break_on_hyphens=False)
    lines += textwrap.wrap(told.money, COLUMNS)
    lines += textwrap.wrap(told.verdict, COLUMNS)
    if told.advice:
        lines += ["", "What a person can do:"]
        for each in told.advice:
            lines += textwrap.wrap(each, COLUMNS, initial_indent="  - ", subsequent_indent="    ")
    return "\n".join(lines)


def times(lanes: Lanes) -> str:
    """Write when a saga started, and how long it took."""
    word = "took" if lanes.final is not None else "last change after"
    return f"started {moment(lanes.first_ms)}, {word} {seconds(lanes.span_ms)}"


def story_of(body: Body, lanes: Lanes) -> Story:
    """Tell a saga's story.

    Args:
        body: the answer to SHOW.
        lanes: of its history.
    """
    status, stuck = str(body["status"]), bool(body.get("stuck"))
    return Story(
        why=plain(_why(body, lanes, status)),
        money=plain(_money(body, lanes)),
        verdict=plain(_verdict(lanes, status, stuck)),
        advice=tuple(plain(each) for each in _advice(body, lanes, status, stuck)),
    )


# -- why ---------------------------------------------------------------------------------------


def _why(body: Body, lanes: Lanes, status: str) -> str:
    if status == "RUNNING":
        return _running(lanes)
    if status not in _STATUSES:  # of a newer shard
        return f"Its status is {status}, which this version does not know."
    if status == "COMPLETED":
        made = [_made(lane) for lane in lanes.actions.values()]
        return _sentence(_listed(made) or "All steps succeeded", _answer(body, lanes))
    cause = _cause(body, lanes)
    if not lanes.actions and not lanes.compensations:
        return _sentence(f"{cause}: no command was sent", _answer(body, lanes))
    stuck = bool(body.get("stuck"))
    undone = [_undone(lanes, lane, stuck) for lane in lanes.compensations.values()]
    undone += [_to_be_undone(lane) for lane in _left(lanes, status)]
    effect = _listed(undone) or "nothing had to be undone"
    return _sentence(f"{cause}, so {effect}", _answer(body, lanes))


def _sentence(told: str, answer: str) -> str:
    return f"{told[:1].upper()}{told[1:]}; {answer}."


def _listed(parts: Sequence[str]) -> str:
    """Join parts as one says them; the last after an `and`."""
    return " and ".join(each for each in (", ".join(parts[:-1]), *parts[-1:]) if each)


def _running(lanes: Lanes) -> str:
    made = [_made(lane) for lane in lanes.actions.values() if lane.outcome == "ok"]
    waits = [lane for lane in lanes.actions.values() if lane.ended_ms is None]
    done = _listed(made)
    told = f"{done[:1].upper()}{done[1:]}. " if done else ""
    if not waits:
        return f"{told}The answer of the last step is there, the next command is about to be sent."
    last = waits[-1]
    tried = "; ".join(note.text for note in last.notes[-2:])
    of = f" ({tried})" if tried else ""
    return f"{told}{_name(last)} has no answer yet{of}."


def _cause(body: Body, lanes: Lanes) -> str:
    """Say why a saga turned back, without a full stop."""
    turn = lanes.turned_back or {}
    cause = turn.get("cause") or body.get("cause")
    reason = str(turn.get("reason") or body.get("reason") or "no reason is kept")
    if cause == "declined":
        for each in lanes.actions.values():
            if each.outcome == "declined":
                return _declined(each)
    if cause == "unpriced":
        return f"The cart could not be priced ({reason})"
    if cause == "cancelled":
        return f"It was cancelled ({reason.removeprefix('Cancelled: ')})"
    lane = _unanswered(lanes)
    name = "a step" if lane is None else _name(lane)
    if cause == "deadline":
        return f"The saga's deadline passed before {name} had an outcome"
    if cause == "quarantined" and lane is not None:
        killed = f"{name} ended {lane.deaths} workers"
        return f"{killed}, so it is not sent any more and its outcome is unknown"
    if cause in ("timed_out", "quarantined"):
        tries = f"{lane.attempt} attempts" if lane and lane.attempt > 1 else "its attempts"
        return f"{name} used up {tries} without an outcome that is known"
    return f"It was turned back ({reason})"


def _unanswered(lanes: Lanes) -> Lane | None:
    """Give the last action that had no outcome when the saga turned back."""
    open_then = [each for each in lanes.actions.values() if each.ended_ms is None or each.is_late]
    return open_then[-1] if open_then else None


def _declined(lane: Lane) -> str:
    words = _WORDS.get(lane.name)
    why = str(lane.said.get("decline_code") or reasons(lane.said) or "no reason is kept")
    return f"{words.declined if words else f'{_name(lane)} was declined'} ({why})"


def _made(lane: Lane) -> str:
    words = _WORDS.get(lane.name)
    if words is None:
        return f"{_name(lane)} succeeded"
    thing, is_many = _thing(lane)
    return f"{thing} {'were' if is_many else 'was'} {words.made}"


def _thing(lane: Lane) -> tuple[str, bool]:
    """Name what an action has made, or may have; and whether these are several."""
    words = _WORDS.get(lane.name)
    if lane.outcome != "ok":
        return f"whatever {_name(lane)} may have done", False
    ids = _ids(lane.said.get(words.ids_in)) if words else []
    if words is None or not ids:
        return f"what {_name(lane)} did", False
    told = ", ".join(ids[:IDS_TOLD])
    if len(ids) > IDS_TOLD:
        told += f" and {len(ids) - IDS_TOLD} more"
    of = f" of {money.show(amount)}" if (amount := _amount(lane)) is not None else ""
    many = len(ids) > 1
    return f"the {words.thing}{'s' if many else ''} {told}{of}", many


def _ids(found: object) -> list[str]:
    if isinstance(found, list | tuple):
        return [str(line.get("reservation_id")) for line in found if isinstance(line, Mapping)]
    return [] if found is None else [str(found)]


def _undone(lanes: Lanes, lane: Lane, stuck: bool) -> str:
    """Say what a compensation has done, or does."""
    action = lanes.actions.get(lane.step)
    thing, many = ("what was done", False) if action is None else _thing(action)
    how = "undone" if action is None else _ending(action)
    if lane.outcome == "ok":
        return f"{thing} {'were' if many else 'was'} {how}"
    tried = _last_words(lane)
    now = f"not {how} yet" if stuck else f"being {how}"
    return f"{thing} {'are' if many else 'is'} {now}" + (f" ({tried})" if tried else "")


def _to_be_undone(action: Lane) -> str:
    thing, many = _thing(action)
    return f"{thing} {'are' if many else 'is'} to be {_ending(action)} then"


def _ending(action: Lane) -> str:
    words = _WORDS.get(action.name)
    return words.undone if words and action.outcome == "ok" else "undone"


def _last_words(lane: Lane) -> str:
    return lane.notes[-1].text if lane.notes else ""


def _left(lanes: Lanes, status: str) -> list[Lane]:
    """Give the actions that are still to be compensated after the one that is, as they come."""
    if status != "COMPENSATING":
        return []
    return [
        lane
        for step, lane in sorted(lanes.actions.items(), reverse=True)
        if step not in lanes.compensations and lane.outcome != "declined"
    ]


def _answer(body: Body, lanes: Lanes) -> str:
    final = lanes.final
    if final is None:
        return "the customer has no final answer yet"
    if final.get("reason"):
        return f"the customer was told '{final['reason']}'"
    order = final.get("order_id") or body.get("order_id")
    return f"the customer was told order {order}" if order else "the customer was told so"


# -- money, verdict, advice --------------------------------------------------------------------


def _money(body: Body, lanes: Lanes) -> str:
    told = []
    for lane in lanes.actions.values():
        amount = _amount(lane)
        if amount is None:
            continue
        undone = lanes.compensations.get(lane.step)
        back = undone is not None and undone.outcome == "ok"
        shown, name = money.show(amount), _name(lane)
        if lane.outcome == "declined":
            told.append(f"nothing taken by {name}")
        elif lane.outcome == "ok":
            returned = f", given back by {_name(undone)}" if undone and back else ""
            told.append(f"{shown} taken by {name}{returned}")
        elif undone is not None and back:
            told.append(f"{shown} if {name} took it, given back by {_name(undone)}")
        else:
            told.append(f"{shown} may have been taken by {name}")
    return f"Money: price {money.show(body.get('amount', 0))}; {'; '.join(told)}." if told else ""


def _amount(lane: Lane) -> int | None:
    amount = lane.asked.get("amount")
    return amount if type(amount) is int else None


def _verdict(lanes: Lanes, status: str, stuck: bool) -> str:
    if status == "COMPLETED":
        return "It completed: every step succeeded."
    if status == "ABORTED":
        if lanes.compensations:
            return "Everything it had done is undone."
        return "Nothing had been done that had to be undone."
    if stuck:
        name = _name(_under_way(lanes))
        return f"It is stuck: {name} does not succeed; a person has to look."
    told = {"RUNNING": "It is running.", "COMPENSATING": "It is turning back."}
    return told.get(status, f"It is {status}.")


def _under_way(lanes: Lanes) -> Lane | None:
    """Give the compensation that has not succeeded."""
    return next((lane for lane in lanes.compensations.values() if lane.outcome != "ok"), None)


def _advice(body: Body, lanes: Lanes, status: str, stuck: bool) -> Sequence[str]:
    saga_id = body["saga_id"]
    if stuck:
        lane = _under_way(lanes)
        said = f" (last: {_last_words(lane)})" if lane and lane.notes else ""
        alone = lane is not None and lane.deaths > 0
        again = "nothing else sends it again" if alone else "it is tried again by itself, too"
        return (
            f"Mend what keeps {_name(lane)} from succeeding{said}.",
            f"Have it sent again now: sagacity retry {saga_id} --reason WHY ({again}).",
            f"All of it, with the likely causes: {RUNBOOK}.",
        )
    if status == "RUNNING":
        return (
            "Nothing, it goes on by itself; whether its workers are there, shows: sagacity top.",
            f"To turn it back: sagacity cancel {saga_id} --reason WHY.",
        )
    if status == "COMPENSATING":
        return ("Nothing: it is tried until it succeeds. It is marked stuck where it does not.",)
    return ()


def _name(lane: Lane | None) -> str:
    if lane is None:
        return "a compensation"
    return f"the command of step {lane.step}" if lane.name == NAMELESS else lane.name
