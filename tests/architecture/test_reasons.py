"""A check that is silenced says beside it why."""

import re
from typing import Final

from tests.architecture.floors import ROOT

SILENCED: Final = re.compile(r"#\s*(noqa|type:\s*ignore|pragma:\s*no)")
# `noqa: E501 - why`, `type: ignore[index]  # why`; one of each on a line have one reason.
REASON: Final = re.compile(r"noqa: [A-Z0-9, ]+ - \w|type: ignore\[[a-z, -]+\]  # (?!noqa)\S")


def test_each_silenced_check_has_its_reason_beside_it() -> None:
    """Without one nobody knows whether it is still needed, or ever was."""
    bare = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in sorted(ROOT.rglob("*.py"))
        if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if SILENCED.search(line) and not REASON.search(line) and "re.compile" not in line
    ]
    assert bare == []
