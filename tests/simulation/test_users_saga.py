"""The page for users who simulate a saga of their own: its code runs, and finds what they break."""

import re
from pathlib import Path
from typing import Any

import pytest

from sagacity.simulation import Scenario, holds, plan_of, run

PAGE = Path(__file__).parents[2] / "docs" / "simulating-your-saga.md"


def _names(old: str = "", new: str = "") -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert old in code
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code.replace(old, new) if old else code, str(PAGE), "exec"), names)
    return names


def _scenario(old: str = "", new: str = "") -> Scenario:
    names = _names(old, new)
    services = names["rooms"], names["kitchen"]
    return Scenario(names["stay"], lambda _: services, names["request"], judge=names["judge"])


def _example(old: str = "", new: str = "") -> Any:
    return _names(old, new)["test_a_stay_is_booked_whole_or_not_at_all"]


def test_the_example_of_the_page_holds() -> None:
    """What a user copies from it passes."""
    _example()()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            'UPDATE room SET cancelled = 1 WHERE number = ? AND step = ?", key',
            'UPDATE room SET cancelled = 1 WHERE number > ? AND step = ?", key',
            id="a compensation that undoes another saga's rows",
        ),
        pytest.param(
            "if taken >= ROOMS:",
            "if taken > ROOMS + 1:",
            id="a service that sells more than there is",
        ),
    ],
)
def test_a_users_bug_is_found_and_its_plan_told(old: str, new: str) -> None:
    """The negative control: the error names seed, invariant and the shortest plan."""
    with pytest.raises(AssertionError, match=r"(?s)seed \d+:\n.*\n\{\"seed\":.*breaks:\n\S"):
        _example(old, new)()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        pytest.param(
            '    db.execute("UPDATE room SET cancelled = 1 WHERE number = ? AND step = ?", key)\n',
            "",
            "judge: ",
            id="a compensation that undoes nothing",
        ),
        pytest.param(
            "BookRoom(run.saga_id, step, run.order.nights)",
            "BookRoom(run.saga_id, step, run.nights)",
            "11: a shard counted a fault, definition_command AttributeError",
            id="a command that raises, so that no saga completes",
        ),
        pytest.param(
            "return Ok(BookRoomOk(call.saga_id, call.step))",
            "return Ok(CancelRoomOk(call.saga_id, call.step))",
            "11: a shard counted a fault, answer_malformed",
            id="an answer of another type, so that no saga completes",
        ),
    ],
)
def test_what_fails_each_time_is_found_at_once(old: str, new: str, says: str) -> None:
    """Without a word of the user's judge, but for what stands in tables that he alone knows."""
    violations = run(scenario := _scenario(old, new), plan_of(scenario, 1, 8)).violations
    assert violations[0].startswith(says)


def test_a_compensation_that_never_succeeds_is_told_with_what_it_said() -> None:
    """Who reads "not finished" wants to know of which command, and why."""
    scenario = _scenario(
        "return Ok(CancelRoomOk(call.saga_id, call.step))",
        'raise ValueError("the key is wrong")',
    )
    violations = run(scenario, plan_of(scenario, 1, 3)).violations
    assert violations[0].startswith("5: not finished in time")
    assert "compensation of step 1" in violations[1]
    assert "the key is wrong" in violations[1]


@pytest.mark.parametrize("nothing", [{"seeds": 0}, {"seeds": -1}, {"sagas": 0}])
def test_to_play_nothing_is_refused(nothing: dict[str, int]) -> None:
    """A test that plays no seed would pass for ever."""
    scenario = _scenario()
    with pytest.raises(ValueError, match="at least 1"):
        holds(scenario, **nothing)
