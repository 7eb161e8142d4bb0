"""docs/protocol.md and docs/journal-format.md are reading copies: they say what the code says."""

import re
from typing import get_args

import pytest
from msgspec import Struct

from sagacity import wire
from sagacity.wire import Answer, Command, Report, ToShard, ToWorker, Witness
from shard.entries import Entry
from shard.segments import Segment
from shard.state import Counts
from shard.store import SCHEMA
from tests.architecture.floors import ROOT

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
FLAT = " ".join(PROTOCOL.split())
JOURNAL = (ROOT / "docs" / "journal-format.md").read_text()
MESSAGES = (*get_args(ToShard), *get_args(ToWorker))
TABLES = re.findall(r"CREATE TABLE (\w+)\((.*?)\) STRICT", SCHEMA, flags=re.DOTALL)


def tag_of(kind: type[Struct]) -> int:
    tag = kind.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


def members(text: str, opening: str) -> list[str]:
    """Give the members of the array that begins so; those of arrays inside are one."""
    begin = text.index(opening)
    depth, found = 0, [""]
    for char in text[begin:]:
        depth += {"[": 1, "]": -1}.get(char, 0)
        if depth == 0:
            return [each.strip() for each in found]
        if char == "," and depth == 1:
            found.append("")
        elif (char, depth) != ("[", 1):
            found[-1] += char
    raise AssertionError(f"{opening} has no end")


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_has_its_tag_and_its_members_on_the_page(kind: type[Struct]) -> None:
    """Who writes a worker in another language has nothing else."""
    assert len(members(PROTOCOL, f"[{tag_of(kind)}, ")) == 1 + len(kind.__struct_fields__)


@pytest.mark.parametrize("kind", [Command, Witness, Answer, Report])
def test_what_stands_in_messages_has_its_fields_on_the_page(kind: type[Struct]) -> None:
    """In their order: they travel without names."""
    tag = [] if kind.__struct_config__.tag is None else [str(tag_of(kind))]
    fields = [*tag, *kind.__struct_fields__]
    assert members(PROTOCOL, f"[{', '.join(fields[:2])}") == fields


def test_every_kind_of_request_is_on_the_page() -> None:
    """With the number that travels."""
    for number, name in {**wire.KINDS, wire.RECALL: "recall"}.items():
        assert f"{number} {name}" in FLAT


def test_every_outcome_is_on_the_page() -> None:
    """Likewise."""
    for number, name in enumerate(wire.OUTCOMES):
        assert f"{number} {name.removeprefix('refused_')}" in FLAT


def test_every_limit_is_on_the_page() -> None:
    """A frame or body over one is refused or closes the connection."""
    for limit in (wire.FRAME_ITEMS_MAX, wire.CONTAINER_MAX, wire.FORGET_RANGES_MAX):
        assert f"{limit:,}".replace(",", " ") in FLAT
    for limit in (wire.FRAME_BYTES_MAX, wire.BODY_BYTES_MAX, wire.HEADERS_BYTES_MAX):
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
        assert size in PROTOCOL
    assert f"at most {wire.DEPTH_MAX} levels" in FLAT


@pytest.mark.parametrize(("table", "columns"), TABLES)
def test_every_table_has_its_columns_on_the_page(table: str, columns: str) -> None:
    """In their order, with their types."""
    names = re.findall(r"(?:^|,)\s*(\w+) (INTEGER|TEXT|BLOB)", columns)
    told = re.search(rf"^{table}\((.*)\)", JOURNAL, flags=re.MULTILINE)
    assert told is not None
    said = [each.split()[0] for each in told[1].split(", ")]
    assert said == [name for name, _ in names]


@pytest.mark.parametrize("kind", get_args(Entry))
def test_every_entry_has_its_tag_and_its_members_on_the_page(kind: type[Struct]) -> None:
    """They are on disks for as long as a directory lives."""
    row = re.search(rf"^\| {tag_of(kind)} \| {kind.__name__} \| (.*) \|$", JOURNAL, re.MULTILINE)
    assert row is not None
    places = [re.search(rf"\b{name}\b", row[1]) for name in kind.__struct_fields__]
    found = [place.start() for place in places if place is not None]
    assert len(found) == len(kind.__struct_fields__)
    assert found == sorted(found)


def test_what_a_checkpoint_counts_is_on_the_page() -> None:
    """Each by its key."""
    assert [name for name in Counts.__struct_fields__ if f"`{name}`" not in JOURNAL] == []


def test_a_segments_head_is_on_the_page() -> None:
    """A map, unlike an entry."""
    assert f"{{{', '.join(Segment.__struct_fields__)}}}" in JOURNAL
