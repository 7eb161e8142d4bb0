"""The shop of the load campaigns: what it counts as served."""

from tests.chaos.shop import Stretch


def test_who_is_served_in_time_is_counted_where_they_came() -> None:
    """A batch that ends just after a stretch is no loss of those who came in it."""
    served: list[tuple[float, float]] = [(11.0, 5.0), (12.0, 1.5)]
    stretch = Stretch([6.0, 10.5, 12.0, 14.9], served, 10.0, 15.0)
    assert (stretch.came, stretch.served, stretch.goodput) == (3, 2, 2 / 3)
    served += [(15.5, 3.5), (31.0, 16.1)]  # those who came last, one of them far too late
    assert stretch.served_in_time(10.0) == 2 / 3
    assert stretch.served_in_time(20.0) == 1.0


def test_a_stretch_in_which_nobody_came_serves_nobody() -> None:
    """And is no success."""
    stretch = Stretch([], [], 0.0, 1.0)
    assert (stretch.goodput, stretch.served_in_time(1.0)) == (0.0, 0.0)
