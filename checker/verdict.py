"""Verdicts: what a rule says, and how it says it. Pure; knows no rule."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from checker.evidence import Evidence, Journal, Plan, Story
from checker.lives import Life, walk
from sagacity.ids import count_of, number_of, shard_of
from sagacity.ranges import Ranges
from shard.entries import Started

HOLDS: Final = "holds"
VIOLATED: Final = "violated"
CANNOT_TELL: Final = "cannot tell"

WHAT_LENGTH_MAX: Final = 400  # characters of a finding
KEPT: Final = 20  # findings of an invariant that are told; the others are counted


class Finding(Struct, frozen=True):
    """One thing that is not as it has to be.

    Args:
        saga_id: of the saga it is about; "" for none.
        what: in words.
        where: in which evidence.
    """

    saga_id: str
    what: str
    where: str


class Verdict(Struct):
    """What a rule says of an invariant.

    Args:
        number: of the invariant, as in the proof.
        name: in a few words.
        verdict: HOLDS, VIOLATED or CANNOT_TELL. A violation that was found stands, whatever else
            cannot be told.
        looked_at: how many things of each kind the rule looked at.
        found: how many findings there are.
        findings: the first of them.
        why: what cannot be told, in words.
    """

    number: int
    name: str
    verdict: str
    looked_at: dict[str, int]
    found: int
    findings: list[Finding]
    why: list[str]


class Told:
    """Takes what one rule has to say.

    Args:
        kept: findings that are kept.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._findings: list[Finding] = []
        self._found = 0
        self._looked: Counter[str] = Counter()
        self._why: list[str] = []

    def finding(self, saga_id: str, what: str, where: str) -> None:
        """Something is not as it has to be."""
        self._found += 1
        if len(self._findings) < self._kept:
            self._findings.append(Finding(saga_id, what[:WHAT_LENGTH_MAX], where))

    def looked(self, kind: str, count: int) -> None:
        """So many things of a kind were looked at; none at all cannot tell anything."""
        self._looked[kind] += count

    def cannot(self, why: str) -> None:
        """Something cannot be told."""
        if why not in self._why:
            self._why.append(why)

    def verdict(self, number: int, name: str) -> Verdict:
        """Give what it comes to."""
        if not self._found and not self._why and not any(self._looked.values()):
            kinds = ", ".join(self._looked) or "anything"
            self._why.append(f"there is nothing to look at: no {kinds}")
        verdict = VIOLATED if self._found else CANNOT_TELL if self._why else HOLDS
        return Verdict(
            number, name, verdict, dict(self._looked), self._found, self._findings, self._why
        )


class Case:
    """Evidence, and what every rule reads of it: each saga's life, who is who.

    Args:
        evidence: whatever it is: a rule says what is wrong with it, and none raises.

    Attributes:
        stories: of all journals, by number.
        starts: of each of them.
        plans: the definition of each, where it is known.
        lives: of these.
        answered: (service, shard) -> the newest row whose command that service has answered.
        answered_epochs: service -> slot -> the highest epoch that it has answered for.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.stories: dict[int, Story] = dict(evidence.stories())
        self.lives: dict[int, Life] = {}
        self.unplanned: set[str] = set()  # sagas whose definition nobody has
        self.forgotten = [Ranges(journal.forgotten) for journal in evidence.journals]
        self.starts: dict[int, Started] = {}
        self.plans: dict[int, Plan] = {}
        for number, story in self.stories.items():
            self.starts[number] = started = story.started
            plan = evidence.plans.get(started.saga)
            if plan is not None and plan.version == started.version:
                self.plans[number] = plan
            else:
                plan = None
            if plan is None:
                self.unplanned.add(story.started.saga)
            else:
                self.lives[number] = walk(story, plan)
        self.answered: dict[tuple[str, int], int] = {}
        self.answered_epochs: dict[str, dict[int, int]] = {}
        self._given = [_given(journal) for journal in evidence.journals]
        for number, life in self.lives.items():
            self._note_answers(number, life)

    def _note_answers(self, number: int, life: Life) -> None:
        plan, slot, shard = self.plans[number], self.starts[number].slot, self.stories[number].shard
        for place, answer in life.outcomes.items():
            step, _ = place
            if not 1 <= step <= len(plan.services):
                continue
            name = plan.services[step - 1]
            due = life.due.get(place, 0)
            if due > self.answered.get((name, shard), 0):
                self.answered[name, shard] = due
            epochs = self.answered_epochs.setdefault(name, {})
            epochs[slot] = max(epochs.get(slot, 0), answer.epoch)

    def name(self, number: int) -> str:
        """Give a saga's id; "" where no journal knows its number."""
        story = self.stories.get(number)
        return story.started.saga_id if story else ""

    def given(self, journal: Journal, seq: int) -> int:
        """Give the highest number that a journal had given by a row."""
        seqs, numbers = self._given[journal.shard]
        at = bisect_right(seqs, seq)
        return numbers[at - 1] if at else 0

    def is_forgotten(self, number: int, count: int) -> bool:
        """Say whether a number is of a saga past retention."""
        shard = shard_of(number)
        return 0 <= shard < len(self.forgotten) and count in self.forgotten[shard]


def _given(journal: Journal) -> tuple[list[int], list[int]]:
    """Give rows, ascending, and the highest number given by each of them."""
    found = [(story.seq, number) for number, story in journal.stories.items()]
    if journal.counts is not None:
        found.append((journal.checkpoint, journal.counts.number))
    skips = {seq: entry for seq, entry in journal.opened if entry.orders_skipped}
    rows = sorted([*found, *((seq, 0) for seq in skips)])
    seqs: list[int] = []
    numbers: list[int] = []
    highest = 0
    for seq, number in rows:
        highest = max(highest, number)
        if number == 0:
            known = max(count_of(highest), count_of(skips[seq].numbers_above))
            highest = max(highest, number_of(known + skips[seq].orders_skipped, journal.shard))
        seqs.append(seq)
        numbers.append(highest)
    return seqs, numbers


def as_report(verdicts: Sequence[Verdict], more: Mapping[str, Any]) -> dict[str, Any]:
    """Give verdicts as `check --json` tells them."""
    return {
        "type": "check",
        "holds": all(each.verdict == HOLDS for each in verdicts),
        **more,
        "invariants": [
            {
                "number": each.number,
                "name": each.name,
                "verdict": each.verdict,
                "looked_at": each.looked_at,
                "found": each.found,
                "findings": [
                    {"saga_id": one.saga_id, "what": one.what, "where": one.where}
                    for one in each.findings
                ],
                "why": each.why,
            }
            for each in verdicts
        ],
    }
