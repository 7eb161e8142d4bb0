"""The picture of a screen in the docs is what the code draws today."""

import html
import io
import re
from xml.etree import ElementTree

from rich.console import Console

from cluster import screen
from tests.architecture.screens import PICTURE, SIZE, picture, recorded


def words_of(svg: str) -> list[str]:
    """Give the words that stand in a picture, whatever draws it; times are each reader's own."""
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    return timeless(" ".join(html.unescape(text).replace("\u00a0", " ") for text in texts))


def timeless(text: str) -> list[str]:
    return [word for word in text.split() if not re.fullmatch(r"[\d-]{10}|[\d:]{8}", word)]


def test_the_picture_in_the_docs_shows_what_the_code_draws() -> None:
    """Else readers look for what is not there. By its words: rich may move a pixel."""
    console = Console(file=io.StringIO(), width=SIZE[0], height=SIZE[1], color_system=None)
    with console.capture() as captured:
        console.print(screen.page(recorded(), width=SIZE[0], height=SIZE[1]))
    found = words_of(PICTURE.read_text())
    assert found == words_of(picture(recorded())), "run: python -m tests.architecture.screens"
    assert set(timeless(captured.get())) <= set(found)


def test_the_picture_asks_nobody_for_anything() -> None:
    """It stands in a README: no script, no font of another's server."""
    text = PICTURE.read_text()
    ElementTree.fromstring(text)
    assert not re.search(r"url\((?!#)|<script|@import|href=|http(?!://www.w3.org/2000/svg)", text)
