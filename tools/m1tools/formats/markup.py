"""HTML, Markdown and plain text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from itertools import pairwise
from urllib.parse import urljoin

from m1tools.formats.section import Extracted, Limits, Section

DROPPED = ("script", "style", "noscript", "template", "svg", "iframe", "object", "canvas")
SHORT = 250


def sections_of(blocks: Iterable[tuple[int, str]]) -> tuple[Section, ...]:
    """Blocks as sections; a block is a heading's level and words, or 0 and text."""
    found: list[Section] = []
    title, level, texts = "", 1, list[str]()

    def close() -> None:
        if title or texts:
            found.append(Section(f"s{len(found) + 1}", title, level, "\n\n".join(texts)))

    for depth, text in blocks:
        if depth:
            close()
            title, level, texts = text, depth, []
        else:
            texts.append(text)
    close()
    return tuple(found)


def read_markdown(text: str, limits: Limits) -> Extracted:
    """Markdown by its headings."""
    sections = sections_of(_blocks(text))
    title = next((one.title for one in sections if one.title), "")
    return Extracted(title, sections)


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark")
    reader.core.ruler.enableOnly(["normalize", "block"])  # Where headings are takes no look inside of paragraphs.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    tokens = reader.parse(text)
    at = 0
    for token, inside in pairwise(tokens):
        if token.type != "heading_open" or token.level or token.map is None:
            continue
        yield from _between(lines[at : token.map[0]])
        yield int(token.tag[1]), inside.content.strip() or "Untitled"
        at = token.map[1]
    yield from _between(lines[at:])


def _between(lines: list[str]) -> Iterator[tuple[int, str]]:
    text = "\n".join(lines).strip("\n")
    if text.strip():
        yield 0, text


def read_plain(text: str, limits: Limits) -> Extracted:
    """Plain text, a section a page where form feeds part them."""
    pages = text.split("\f")
    if len(pages) == 1:
        return Extracted("", (Section("s1", "", 1, text),) if text.strip() else ())
    return Extracted("", tuple(Section(f"p{i}", "", 1, page) for i, page in enumerate(pages, 1)))


def read_html(data: bytes, limits: Limits, charset: str = "") -> Extracted:
    """A whole HTML file by its headings."""
    title, text = _markdown(data, charset)
    found = read_markdown(text, limits)
    return Extracted(title or found.title, found.sections)


def read_page(data: bytes, limits: Limits, charset: str = "", address: str = "") -> Extracted:
    """The main text of a web page as Markdown, in one section; all of the page where none stands out."""
    import trafilatura

    title, whole = _markdown(data, charset, address)
    html = _decoded(data, charset)
    main = trafilatura.extract(
        html, url=address or None, output_format="markdown", include_links=True, include_tables=True, deduplicate=False
    )
    text = main if main and (len(main) >= SHORT or len(main) * 2 >= len(whole)) else whole
    return Extracted(title, (Section("s1", title, 1, text),))


def _markdown(data: bytes, charset: str, address: str = "") -> tuple[str, str]:
    """A page's title, and all of it as Markdown."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(data, "lxml", from_encoding=_known(charset))
    title = " ".join(page.title.get_text().split()) if page.title else ""
    for element in page.find_all([*DROPPED, "title"]):
        element.decompose()
    for image in page.find_all("img", src=True):
        if str(image["src"]).startswith("data:"):
            image["src"] = ""
    for link in page.find_all("a", href=True) if address else ():
        link["href"] = _joined(address, str(link["href"]))
    return title, MarkdownConverter(heading_style="ATX", bullets="-").convert_soup(page).strip()


def _joined(address: str, link: str) -> str:
    try:
        return urljoin(address, link)
    except ValueError:
        return link


def _decoded(data: bytes, charset: str) -> str | bytes:
    known = _known(charset)
    return data.decode(known, "replace") if known else data


def _known(charset: str) -> str | None:
    try:
        return codecs.lookup(charset).name if charset else None
    except (LookupError, ValueError):
        return None
