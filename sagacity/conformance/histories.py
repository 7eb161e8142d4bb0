"""Histories of the commands of one step, and what the barrier promises of each. Pure.

A history is a text; each letter is one delivery:

    A  the action                                    D  the action, with a body that is declined
    d  the action: its handler writes, then declines
    F  the action: its handler writes, then fails    X  ... then raises
    C  the compensation, with the ids of the action's reply where there is one
    U  the compensation without ids, as of an action whose outcome nobody knows
    f  the compensation: its handler undoes, then fails      x  ... then raises
    B  the compensation, with the ids of another saga's reply

What `d`, `F`, `X`, `f` and `x` say of the end the kit brings about; the handler runs unchanged.
"""

from typing import Final

from msgspec import Struct, structs

WORDS: Final = {
    "A": "action",
    "D": "action that is declined",
    "d": "action that is declined after its writes",
    "F": "action that fails after its writes",
    "X": "action whose handler raises after its writes",
    "C": "compensation",
    "U": "compensation without ids",
    "f": "compensation that fails after its writes",
    "x": "compensation whose handler raises after its writes",
    "B": "compensation with another saga's ids",
}
COMPENSATIONS: Final = "CUfxB"

# PROOF's words for them: A, AA, C, CA, AC, ACA, CC, declined-then-late, failed-then-again; then
# what these leave open.
SERIAL: Final = (
    *("A", "AA", "C", "CA", "AC", "ACA", "CC"),
    *("dA", "dAC", "FA", "XA", "FC", "XC"),
    *("AU", "ACC", "AfC", "AxC", "fA", "xAC", "AFXC", "CUA"),
)
DECLINED: Final = ("D", "DA", "DAA", "DC", "DU")  # of a service that declines by itself
FOREIGN: Final = ("B", "AB", "ABC", "BA")  # of a service whose compensations carry ids

# What one worker does, and what another does at the same time: letters before, one, the other.
AT_ONCE: Final = (
    ("", "A", "U"),  # A || C, in both orders
    ("", "U", "A"),
    ("", "A", "A"),
    ("", "U", "U"),
    ("A", "A", "C"),
    ("A", "C", "A"),
    ("A", "C", "C"),
    ("U", "U", "A"),
    ("d", "A", "U"),
    ("F", "A", "U"),
)

ONCE: Final = "an action takes effect once, however often it is delivered"
UNDONE: Final = "a compensation undoes what its action did, all of it and once"
OTHERS: Final = "a command touches only the rows of its own saga and step"
NOTHING: Final = "a compensation of what never took effect succeeds and changes nothing"
LATE: Final = "an action that comes after its compensation takes no effect"
DECLINE: Final = "a declined action leaves no effect, and stays declined"
FAILURE: Final = "a failed command leaves no effect, and is done when it comes again"
IDS: Final = "ids in a compensation are compared with the step's own rows, never acted on"
BATCH: Final = "commands of one transaction take effect as they do one by one"
CRASH: Final = "what was not committed never happened, and is done when it comes again"
AT_ONCE_ALIKE: Final = "two workers at once do what one does after the other"
RESTART: Final = "what a command needs is in the database, not in its process"
TRANSACTIONS: Final = "a handler leaves transactions alone"
SAMPLE: Final = "the sample commands show something"

WHY: Final = {
    ONCE: "does the handler write one effect, through `db`, under (number, step)?",
    UNDONE: "does it undo each row of (number, step), and each of them once?",
    OTHERS: "does each statement say WHERE number = ? AND step = ?, and UNIQUE (number, step)?",
    NOTHING: "where (number, step) has no rows and the body no ids, give Ok and do nothing",
    LATE: "does something else than the handler write?",
    DECLINE: "is the effect outside of `db`? decline before it, or write it through `db`",
    FAILURE: "is the effect outside of `db`, or does the handler remember what was undone?",
    IDS: "read the rows of (number, step); give Failed where the body names others",
    BATCH: "does the handler remember what was undone, or write outside of `db`?",
    CRASH: "is the effect outside of `db`, or does the handler remember what was undone?",
    AT_ONCE_ALIKE: "does the handler keep something between its commands?",
    RESTART: "does the handler keep something between its commands?",
    TRANSACTIONS: "no BEGIN, COMMIT or ROLLBACK in a handler",
    SAMPLE: "see the arguments of `check`",
}


class Expected(Struct, frozen=True):
    """What a delivery must come to.

    Args:
        outcome: one of wire.OUTCOMES.
        stands: whether the action's effect stands afterwards.
        repeats: whether the reply is that of the delivery before in this direction.
        promise: that is broken where it is not so.
    """

    outcome: str
    stands: bool
    repeats: bool
    promise: str


class Model:
    """What the barrier promises of the commands of one step, in the order of their transactions."""

    def __init__(self) -> None:
        self._action: str | None = None  # the stored outcome
        self._compensated = False
        self._failed = False  # the last delivery

    @property
    def stands(self) -> bool:
        """Whether the action's effect stands."""
        return self._action == "ok" and not self._compensated

    def deliver(self, letter: str) -> Expected:
        """Take the next delivery."""
        expected = self._deliver(letter)
        after_failure, self._failed = self._failed, expected.outcome == "failed"
        if after_failure and expected.promise in (ONCE, UNDONE):
            return structs.replace(expected, promise=FAILURE)
        return expected

    def _deliver(self, letter: str) -> Expected:
        if letter in COMPENSATIONS:
            return self._compensate(letter)
        if self._compensated:
            return Expected("refused_compensated", False, False, LATE)
        if self._action is not None:
            promise = ONCE if self._action == "ok" else DECLINE
            return Expected(self._action, self.stands, True, promise)
        if letter in "FX":
            return Expected("failed", False, False, FAILURE)
        self._action = "declined" if letter in "Dd" else "ok"
        return Expected(self._action, self.stands, False, DECLINE if letter in "Dd" else ONCE)

    def _compensate(self, letter: str) -> Expected:
        if self._compensated:
            return Expected("ok", False, True, UNDONE)
        if letter in "fxB":
            return Expected("failed", self.stands, False, IDS if letter == "B" else FAILURE)
        promise = UNDONE if self.stands else NOTHING
        self._compensated = True
        return Expected("ok", False, False, promise)


def told(letters: str) -> str:
    """Give a history in words."""
    return ", then ".join(WORDS[letter] for letter in letters)
