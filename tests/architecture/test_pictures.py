"""The docs' pictures are prints of the code's tables."""

import pytest

from tests.architecture import grafana
from tests.architecture.floors import ROOT
from tests.architecture.pictures import PLACES, printed


@pytest.mark.parametrize("place", sorted(PLACES))
def test_a_picture_in_the_docs_is_the_table_in_the_code(place: str) -> None:
    """Else readers learn a life cycle that the engine does not have."""
    page = (ROOT / place).read_text()
    assert printed(page, PLACES[place]) == page, "run: python -m tests.architecture.pictures"


def test_the_dashboards_are_what_the_table_prints() -> None:
    """Who looks at a file in Grafana looks at the queries that tests have run."""
    printed = grafana.files()
    assert sorted(printed) == sorted(file.name for file in grafana.PLACE.iterdir())
    for name, text in printed.items():
        said = "run: python -m tests.architecture.pictures"
        assert (grafana.PLACE / name).read_text() == text, said
