"""The docs' pictures are prints of the code's tables."""

import pytest

from tests.architecture.floors import ROOT
from tests.architecture.pictures import PLACES, printed


@pytest.mark.parametrize("place", sorted(PLACES))
def test_a_picture_in_the_docs_is_the_table_in_the_code(place: str) -> None:
    """Else readers learn a life cycle that the engine does not have."""
    page = (ROOT / place).read_text()
    assert printed(page, PLACES[place]) == page, "run: python -m tests.architecture.pictures"
