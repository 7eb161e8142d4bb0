"""The museum itself: every bug fits our source, is gone afterwards, and one that hides is told."""

import pytest

from sagacity.slots import slot_of
from tests.museum import __main__ as museum
from tests.museum.bugs import BUGS, SIMULATION, Bug
from tests.museum.plant import Change, DoesNotFit, planted


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_fits_our_source(bug: Bug) -> None:
    """A change of the house that a bug does not fit any more has to be seen at once."""
    with planted(*bug.changes):
        pass


def test_a_bug_is_there_while_it_is_planted_and_gone_afterwards() -> None:
    """Whoever holds the function has the change, and loses it again."""
    before = slot_of("checkout42")
    with planted(
        Change(
            "sagacity.slots:slot_of", "return crc32(saga_id.encode()) & (SLOTS - 1)", "return -1"
        )
    ):
        assert slot_of("checkout42") == -1
    assert slot_of("checkout42") == before


def test_a_change_that_does_not_fit_is_an_error() -> None:
    """It would plant nothing, and its hunt would prove nothing."""
    with pytest.raises(DoesNotFit), planted(Change("sagacity.slots:slot_of", "no such line", "")):
        pass


def test_a_planted_bug_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """By the command that people run."""
    assert museum.main(["--bugs", "no_dedupe", "--hunts", "2", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.startswith("no_dedupe simulation found 2/2 ")


def test_a_bug_that_hides_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: what changes nothing is found by nobody, and the exit code is 1."""
    monkeypatch.setattr("tests.museum.hunts.SEEDS_MAX", 2)
    harmless = Bug("harmless", SIMULATION, ())
    monkeypatch.setattr(museum, "by_name", lambda _name: harmless)
    assert museum.visit([harmless], 1, 1) == 1
    assert capsys.readouterr().out.startswith("harmless simulation found 0/1 -")
