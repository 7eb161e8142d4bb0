"""Versions: which of what we stand on are known to be bad. Pure; loads none of them.

pip keeps to the lower bounds of pyproject.toml when it installs; a distribution's own libzmq or
SQLite, or a later `pip install` of something else, does not. So each process looks again when it
starts, and refuses with a reason rather than lose what it promised to keep.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from sagacity.errors import Malformed


class Bad(NamedTuple):
    """Up to where a library is known to be bad.

    Args:
        below: the first version that is good.
        because: what the ones before do.
        package: that brings a good one.
    """

    below: tuple[int, int, int]
    because: str
    package: str


# Why these: docs/decisions/0018-known-bad-versions.md.
KNOWN_BAD: Final[Mapping[str, Bad]] = {
    "msgpack": Bad(
        (1, 2, 1), "an Unpacker may read beyond its buffer (GHSA-6v7p-g79w-8964)", "msgpack"
    ),
    "libzmq": Bad(
        (4, 3, 3),
        "whoever connects may overflow its heap (CVE-2021-20235) or shut others out"
        " (CVE-2020-15166)",
        "pyzmq",
    ),
    "SQLite": Bad((3, 51, 3), "a reset of the WAL may corrupt the database", "apsw"),
}

_NUMBERS: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


def refuse_known_bad(found: Mapping[str, str]) -> None:
    """Refuse to run on versions that are known to be bad; all of them are named at once.

    Args:
        found: the version of each library that the process uses, as the library itself says it;
            keys of KNOWN_BAD.

    Raises:
        Malformed: one is bad, or is no version.
    """
    faults = [fault for name, text in found.items() if (fault := _fault(name, text))]
    if faults:
        raise Malformed("; ".join(faults))


def _fault(name: str, text: str) -> str | None:
    bad = KNOWN_BAD[name]
    numbers = _NUMBERS.match(text)
    good = ".".join(map(str, bad.below))
    if numbers is None:
        return f"{name} says version {text!r}, which cannot be compared with {good}"
    if tuple(int(number or 0) for number in numbers.groups()) >= bad.below:
        return None
    return (
        f"{name} {text} is refused, {good} or newer is needed: before it {bad.because}; "
        f"mend it with: pip install --upgrade {bad.package}"
    )
