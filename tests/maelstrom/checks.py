"""What must hold of all that clients heard: a saga is one saga, whoever was asked. Pure.

Reads the evidence of a round; knows neither processes nor the network that came between.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from sagacity.errors import Conflict, UnknownSaga
from tests.maelstrom.clients import Heard


class Expected(Struct, frozen=True):
    """What is known of a saga before it runs.

    Args:
        endings: for each of its contents, the status and reason that it must come to if it is the
            one that was first.
        fingerprints: of each of its contents, as the shard's answer with code 22 tells it.
        cancelled: reason of a cancel that somebody asks for; None if nobody does.
    """

    endings: Sequence[tuple[str, str]]
    fingerprints: Sequence[str]
    cancelled: str | None = None


def faults_of(heard: Iterable[Heard], sagas: Mapping[str, Expected]) -> list[str]:
    """Give a sentence for each thing that must not be."""
    by_saga: dict[str, list[Heard]] = defaultdict(list)
    for each in heard:
        if each.is_final:
            by_saga[each.saga_id].append(each)
    found = []
    for saga_id, expected in sagas.items():
        found += [f"{saga_id}: {fault}" for fault in _faults(by_saga[saga_id], expected)]
    return found


def _faults(finals: list[Heard], expected: Expected) -> list[str]:
    checkouts = [each for each in finals if each.kind == "checkout"]
    outcomes = [each for each in checkouts if "code" not in each.body]
    if not outcomes:
        return ["nobody heard an outcome"]
    winners = {each.content for each in outcomes}
    if len(winners) != 1:
        return [f"{len(winners)} contents under one id ran"]
    texts = {each.text for each in outcomes}
    if len(texts) != 1:
        return [f"{len(texts)} final answers: {sorted(texts)}"]
    winner = winners.pop()
    found = _of_outcome(outcomes[0].body, expected, winner)
    for each in checkouts:
        if "code" in each.body:
            found += _of_refusal(each, expected, winner)
    return found + _of_cancels(finals, outcomes[0].body, expected)


def _of_outcome(body: dict[str, Any], expected: Expected, winner: int) -> list[str]:
    cancelled = f"Cancelled: {expected.cancelled}"
    ending = (body["status"], body.get("reason", ""))
    if ending == expected.endings[winner]:
        return []
    if expected.cancelled is not None and ending == ("ABORTED", cancelled):
        return []
    return [f"it came to {ending}, not to {expected.endings[winner]}"]


def _of_refusal(heard: Heard, expected: Expected, winner: int) -> list[str]:
    body = heard.body
    if heard.content == winner or body["code"] != Conflict.code:
        return [f"{heard.client} was refused: {body}"]
    if body.get("fingerprint") != expected.fingerprints[winner]:
        return [f"{heard.client} was told another fingerprint than the first content's: {body}"]
    return []


def _of_cancels(finals: list[Heard], outcome: dict[str, Any], expected: Expected) -> list[str]:
    """Those who cancel are told one truth: it was turned back for that, or it was too late."""
    found = []
    codes = set()
    for each in finals:
        if each.kind == "cancel":
            code = each.body.get("code")
            codes.add(code)
            if code not in {None, Conflict.code, UnknownSaga.code}:
                found.append(f"{each.client}'s cancel was refused: {each.body}")
    turned = outcome.get("reason") == f"Cancelled: {expected.cancelled}"
    if None in codes and not turned:
        found.append(f"a cancel was accepted, and the saga came to {outcome}")
    if Conflict.code in codes and turned:
        found.append("a cancel was too late, and the saga was cancelled")
    return found
