"""The page of `show --html`: stands alone, draws the timeline, and text stays text."""

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from cluster.storypage import html
from sagacity import wire
from sagacity.saga import Retry
from tests.unit.test_timeline import begun, drive, shown
from tests.unit.world import Rules, World

HOSTILE = [
    "</title><script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onload='alert(1)",
    "</svg></style><iframe src=https://example.org>",
    "<!--",
    "]]>",
    "&lt;script&gt;",
    "\x1b[2J\u202e\x00",
]
VOID = {"meta"}


class Reader(HTMLParser):
    """Reads a page: its tags with their attributes, its text; fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def refused() -> dict[str, Any]:
    """Give a saga that shipping refused, all undone."""
    outcomes = (wire.OK, wire.OK, wire.DECLINED, wire.OK, wire.OK)
    return shown(drive(begun(), *((10, outcome) for outcome in outcomes)))


def stuck() -> dict[str, Any]:
    rules = Rules(retry=Retry(stuck_after=3, backoff_ms=1, backoff_max_ms=1))
    world = drive(begun(rules), (1, wire.OK), (1, wire.DECLINED))
    for _ in range(5):
        world.drive("a", wire.FAILED)
        world.after(1_000)
        world.step(*world.beats())
    return shown(world)


def test_the_page_tells_what_the_terminal_tells() -> None:
    """The sentence, the money, the verdict, and every event."""
    text = " ".join("".join(read(html(refused())).text).split())
    assert "Shipping refused (DECLINED), so the payment p1 of 249.99 was refunded" in text
    assert "249.99 taken by ChargePayment, given back by RefundPayment." in text
    assert "Everything it had done is undone." in text
    assert "CreateShipment_failed, error business, decline_code DECLINED" in text
    told = " ".join("".join(read(html(stuck())).text).split())
    assert "STUCK" in told
    assert "sagacity retry a --reason WHY" in told


def test_the_timeline_is_drawn_a_bar_a_command_and_a_tick_an_attempt() -> None:
    reader = read(html(refused()))
    bars = [attributes for tag, attributes in reader.tags if tag == "rect"]
    assert [bar["class"] for bar in bars] == ["b-ok", "b-ok", "b-no", "b-undo", "b-undo"]
    starts = [float(bar["x"] or "nan") for bar in bars]
    assert starts == sorted(starts)
    assert all(float(bar["width"] or "nan") >= 3 for bar in bars)
    assert sum(attributes.get("class") == "turn" for _, attributes in reader.tags) == 1
    late = read(html(stuck()))
    assert [a["class"] for tag, a in late.tags if tag == "rect"] == ["b-ok", "b-no", "b-open"]
    assert sum(attributes.get("class") == "tick" for _, attributes in late.tags) == 5


def test_the_drawing_is_well_formed() -> None:
    [drawing] = re.findall(r"<svg.*</svg>", html(refused()))
    root = ElementTree.fromstring(drawing)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]


def test_nothing_on_the_page_runs_or_is_fetched() -> None:
    """It is mailed, kept, and opened where there is no network; what it holds came from outside."""
    page = html(stuck())
    reader = read(page)
    names = {tag for tag, _ in reader.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form"})
    attributes = {name for _, found in reader.tags for name in found}
    assert not any(name.startswith("on") or name in {"src", "href", "style"} for name in attributes)
    assert "url(" not in page
    assert "@import" not in page
    [policy] = [a["content"] for _, a in reader.tags if "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_it_fits_light_and_dark() -> None:
    """By CSS alone: no text has a colour that only one of them can show."""
    page = html(refused())
    assert "color-scheme: light dark" in page
    assert "prefers-color-scheme: dark" in page
    used = set(re.findall(r"var\((--[a-z]+)\)", page))
    light, dark = page.split("prefers-color-scheme: dark", 1)
    defined = set(re.findall(r"(--[a-z]+): #", light))
    assert used <= defined == set(re.findall(r"(--[a-z]+): #", dark))


@pytest.mark.parametrize("evil", HOSTILE)
def test_no_text_from_outside_becomes_markup(evil: str) -> None:
    """Ids, reasons, errors, command names, causes: each passes the one door."""
    safe = read(html(stuck()))
    body = stuck()
    for key in ("saga_id", "status", "order_id", "reason", "cause"):
        body[key] = evil
    body["stuck"] = True
    for event in body["history"]:
        for key in ("text", "reason", "cause", "outcome", "event"):
            if key in event and (key != "event" or event[key] == "started"):
                event[key] = evil
        for key in event.get("body") or {}:
            if isinstance(event["body"][key], str):
                event["body"][key] = evil
    found = read(html(body))
    kinds = {tag for tag, _ in safe.tags}
    assert {tag for tag, _ in found.tags} <= kinds
    assert {name for _, a in found.tags for name in a} <= {name for _, a in safe.tags for name in a}
    whole = html(body)
    assert all(char.isprintable() or char == "\n" for char in whole)


def test_a_saga_that_sent_nothing_has_no_drawing() -> None:
    world = World()
    world.step(world.start("a", items=[{"sku": "zzz", "quantity": 1}]))
    page = html(shown(world))
    assert "<svg" not in page
    assert "Unknown SKU: zzz" in page


@pytest.mark.parametrize("shift", [-3_600_000, 3_600_000])
def test_a_clock_that_was_set_leaves_no_drawing(shift: int) -> None:
    """Times are wall times; a bar stays within the drawing."""
    body = refused()
    body["history"][3]["at_ms"] += shift
    for tag, attributes in read(html(body)).tags:
        if tag == "rect":
            x, width = float(attributes["x"] or "nan"), float(attributes["width"] or "nan")
            assert 210 <= x <= 640
            assert x + width <= 644
