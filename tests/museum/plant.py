"""Plant: changes a function of production code, as a diff would, for as long as a block lasts.

The function's code is replaced by that of its changed source. Nothing in production code knows of
it, so no switch can be left on there; a change that fits no more fails at once.
"""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from msgspec import Struct


class Change(Struct, frozen=True):
    """A change of one function.

    Args:
        place: module and function, such as "shard.loop:Loop._perform".
        old: a piece of its source that stands there once.
        new: what stands there instead.
    """

    place: str
    old: str
    new: str


class DoesNotFit(Exception):
    """The source that a change is of has changed: the change has to be made anew."""


@contextmanager
def planted(*changes: Change) -> Iterator[None]:
    """Have changes in force."""
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(_planted(change))
        yield


@contextmanager
def _planted(change: Change) -> Iterator[None]:
    function = _function(change.place)
    before = function.__code__
    function.__code__ = _compiled(function, change)  # so whoever holds the function has the change
    try:
        yield
    finally:
        function.__code__ = before


def _function(place: str) -> Any:
    module_name, _, path = place.partition(":")
    found: Any = import_module(module_name)
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
    return found.__func__ if isinstance(found, staticmethod) else found


def _compiled(function: Any, change: Change) -> Any:
    source = textwrap.dedent(inspect.getsource(function))
    old, new = _indented(source, change)
    made: dict[str, Any] = {}
    changed = source.replace(old, new)
    exec(compile(changed, f"<planted {change.place}>", "exec"), function.__globals__, made)
    return made[function.__name__].__code__


def _indented(source: str, change: Change) -> tuple[str, str]:
    """Give both pieces as deep as the first one stands in the source."""
    old = textwrap.dedent(change.old).strip("\n")
    new = textwrap.dedent(change.new).strip("\n")
    for depth in range(8):
        deeper = textwrap.indent(old, "    " * depth)
        if f"\n{source}".count(f"\n{deeper}\n") == 1:
            return f"{deeper}\n", f"{textwrap.indent(new, '    ' * depth)}\n"
    raise DoesNotFit(f"{change.place} has not once:\n{change.old}")
