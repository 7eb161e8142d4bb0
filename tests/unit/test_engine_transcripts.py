"""The engine by example: each file in transcripts/ is a script of events and what came of them."""

from pathlib import Path

import pytest

from tests.unit.script import check_transcript

HERE = Path(__file__).parent / "transcripts"
FILES = sorted(HERE.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_engine_asks_for_what_the_transcript_says(path: Path) -> None:
    """A reader can check each line against SPEC 3 without reading the engine."""
    check_transcript(path)
