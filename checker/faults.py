"""Invariant 12: what is shown is shown under faults that really happened. Pure."""

from checker.starts import NO_RECORD
from checker.verdict import Case, Told


def faults_really_happened(case: Case, told: Told) -> None:
    """12: a round is void unless every fault that was planned was seen to hit something."""
    record = case.evidence.record
    if record is None:
        told.cannot(NO_RECORD)
        return
    told.looked("planned faults", len(record.planned))
    told.looked("faults seen", sum(struck.hit > 0 for struck in record.struck))
    if not record.planned:
        told.cannot("no fault was planned: the round shows nothing of faults")
    hits: dict[str, int] = {}
    for struck in record.struck:
        hits[struck.fault] = hits.get(struck.fault, 0) + (struck.hit > 0)
    planned: dict[str, int] = {}
    for each in record.planned:
        planned[each.fault] = planned.get(each.fault, 0) + 1
    for fault, times in planned.items():
        if hits.get(fault, 0) != times:
            void = "void: " if hits.get(fault, 0) < times else ""
            text = f"{void}{fault} was planned {times} times, and happened {hits.get(fault, 0)}"
            told.finding("", text, "client's record")
    for fault in hits.keys() - planned.keys():
        told.finding("", f"{fault} happened, and nobody planned it", "client's record")
