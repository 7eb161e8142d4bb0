"""The demo can fail: a demo that always ends well shows nothing."""

from typing import NoReturn

import pytest

from cluster import demo
from sagacity.errors import NotTaken

RIGHT = {"status": "COMPLETED", "order_id": "o1"}
TRAVELLED = list(demo.CASES[0].travelled)


def test_what_is_expected_passes() -> None:
    demo._require(demo.CASES[0], RIGHT, TRAVELLED)


@pytest.mark.parametrize(
    ("answer", "travelled"),
    [
        ({"status": "ABORTED", "reason": "Timed out: ChargePayment"}, TRAVELLED),
        ({**RIGHT, "reason": "why"}, TRAVELLED),
        (RIGHT, TRAVELLED[:-1]),
        (RIGHT, [*TRAVELLED, "CancelShipment"]),
        ({"type": "error", "code": 11}, []),
    ],
)
def test_anything_else_fails(answer: dict[str, str], travelled: list[str]) -> None:
    with pytest.raises(demo.Unexpected, match="all goes well: expected"):
        demo._require(demo.CASES[0], answer, travelled)


def test_a_failure_is_said_and_ends_with_one(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> NoReturn:
        raise NotTaken("no room")

    monkeypatch.setattr(demo, "start_private", refuse)
    assert demo.main([]) == 1
    assert "The demo failed: no room" in capfd.readouterr().err


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("--nonsense", 2), ("more", 2)])
def test_a_word_to_the_demo_starts_no_cluster(
    monkeypatch: pytest.MonkeyPatch, word: str, code: int
) -> None:
    """Who asks what it does does not want to see it done."""
    monkeypatch.setattr(demo, "start_private", None)
    with pytest.raises(SystemExit) as ended:
        demo.main([word])
    assert ended.value.code == code
