"""The page for users who simulate a saga of their own: its code runs, and finds what they break."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "simulating-your-saga.md"


def _example(old: str = "", new: str = "") -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert old in code
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code.replace(old, new) if old else code, str(PAGE), "exec"), names)
    return names["test_a_stay_is_booked_whole_or_not_at_all"]


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
    with pytest.raises(AssertionError, match=r"seed \d+:\n.*\n\{\"seed\":"):
        _example(old, new)()
