"""One document, for programs: passages to read in turn, tools to search it by, and claims held against it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from m1agent import ToolError, Toolset, tool
from m1agent.threads import in_thread
from m1agent.tools import Hints
from m1tools.documents.claims import Claim, numbers, quoted, short
from m1tools.documents.library import Entry, Library, Piece
from m1tools.documents.reading import Reader
from m1tools.files.beneath import Root
from m1tools.formats.extract import extract
from m1tools.formats.section import Limits

READS = Hints(read_only=True, open_world=False)
FILE = re.compile(r"\S+\.\w{1,6}|\S*/\S*|.*\.(pdf|docx?|html?|xhtml|md|markdown|txt)", re.IGNORECASE)
LONGEST_PATH = 1000
HIT, LINE = 700, 330  # Characters that a hit of a search and a line of an outline have at most.
AFTER = 600


def weight(text: str) -> int:
    """Bytes of a text: what its tokens are guessed from, since letters of some languages are tokens of their own."""
    return len(text.encode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Passage:
    """Pieces in a row, each after its anchor, and the anchors of the `first` and the `last`."""

    first: str
    last: str
    text: str


class Document:
    """A document that was read; `await Document.read(...)` makes one. `name` is what it is called."""

    def __init__(self, library: Library, entry: Entry) -> None:
        self._library, self._entry = library, entry

    @classmethod
    async def read(
        cls,
        source: str | os.PathLike[str],
        *,
        index: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
    ) -> Document:
        """Read a file, or a text itself, which may have Markdown's headings.

        Args:
            source: a text of one line is the path of a file, where there is one.
            index: a file that keeps what was read for the next time; without it, memory does.
            limits: bounds on the document.

        Raises:
            FileNotFoundError: `source` looks like a file's name, and there is none.
            ToolError: it cannot be read; the text says why.
            ValueError: `index` is a file of another kind.
        """
        limits = limits or Limits()
        path = await in_thread(lambda: _path(source))
        if path is not None:
            folder = Root(path.parent)
            library = Library(str(folder.path), index)
            return cls(library, await Reader(folder, library, limits).entry(path.name))
        data = str(source).encode("utf-8", "replace")
        library, state = Library("", index), f"{hashlib.sha256(data).hexdigest()} {limits}"
        known = library.known("text", state)
        if known is None:
            known = library.add("text", state, "Markdown", await extract("text", data, "markdown", limits))
        return cls(library, known)

    @property
    def name(self) -> str:
        """Of its file, and its title."""
        return f"{self._entry.path}{f' ({self._entry.title})' if self._entry.title else ''}"

    @property
    def told(self) -> str:
        """It in a few lines: kind, length, and what of it could not be read."""
        return self._entry.told

    def passages(self, most: int, about: str = "") -> list[Passage]:
        """The document in passages of at most `most` bytes, a piece at least; with `about` only the pieces that a
        search finds, in their order.

        Raises:
            ToolError: there is no word in `about`.
        """
        pieces = [piece for piece in self._library.pieces(self._entry) if piece.text.strip()]
        if about:
            wanted = set(self._library.matching(about, self._entry, 100))
            pieces = [piece for piece in pieces if piece.anchor in wanted]
        return list(_packed(pieces, most))

    def fault(self, claim: Claim) -> str:
        """Why a claim does not stand where it says it does, or ''.

        Its quote must be there word for word, and every number it names, too.
        """
        try:
            count = self._library.count(self._entry, claim.anchor)
            pieces = self._library.pieces(self._entry, claim.anchor)
        except ToolError as error:
            return str(error)
        body = "\n".join(piece.text for piece in pieces[:count])
        text, after = f"{pieces[0].title}\n{body}", "".join(piece.text for piece in pieces[count:])[:AFTER]
        if short(claim.quote, body):
            return f"{claim.quote[:60]!r} is too short: quote more words."
        if not quoted(claim.quote, text, after):
            place = self._place(claim.quote)
            return f"{claim.quote[:60]!r} is not at {claim.anchor}{f', but at {place}' if place else ''}."
        missing = numbers(claim.text) - numbers(f"{claim.anchor} {text} {after}")
        return f"{', '.join(sorted(missing))} is not at {claim.anchor}." if missing else ""

    def _place(self, quote: str) -> str:
        """The anchor that a quote is of, or ''."""
        try:
            found = self._library.matching(quote.replace('"', " "), self._entry, 10)
        except ToolError:
            return ""
        for anchor in found:
            piece = self._library.pieces(self._entry, anchor)[0]
            if quoted(quote, f"{piece.title}\n{piece.text}"):
                return anchor
        return ""

    def tools(self, most: int) -> Toolset:
        """Tools to read and search it with, whose results have about `most` bytes, or a piece."""
        library, entry = self._library, self._entry

        @tool(hints=READS)
        def outline_document(start: str = "") -> str:
            """List the document's pages or sections: anchor, title, length in characters.

            Args:
                start: The anchor to begin at.
            """
            return library.outline(entry, start, max(3, most // LINE))

        @tool(hints=READS)
        def read_document(anchor: str = "", until: str = "") -> str:
            """Read a page or section, or several.

            Args:
                anchor: Such as p12, s3 or s3.2; without it, from the beginning.
                until: The last anchor to read; without it, only the one page or section.
            """
            return library.read(entry, anchor, until, most, weight)

        @tool(hints=READS)
        async def search_document(query: str, limit: Annotated[int, Field(ge=1, le=30)] = 8) -> str:
            """Find the places that fit some words best, each with its anchor.

            Args:
                query: Words, or "phrases" in quotes.
                limit: How many places.
            """
            return await in_thread(lambda: library.search(query, entry, min(limit, max(1, most // HIT))))

        return Toolset("document", [outline_document, read_document, search_document])

    def kept(self, name: str) -> str | None:
        """What `keep` was given for this document, as long as that has not changed."""
        return self._library.kept(self._entry, name)

    def keep(self, name: str, body: str) -> None:
        """Keep a text with the document, in its index."""
        self._library.keep(self._entry, name, body)


def _path(source: str | os.PathLike[str]) -> Path | None:
    """The file that is meant, or None where the text itself is."""
    if isinstance(source, str) and ("\n" in source or "\0" in source or len(source) > LONGEST_PATH):
        return None
    path = Path(source).expanduser()
    try:
        if path.exists():
            return path.resolve()
    except OSError:  # Too long for a name.
        pass
    if not isinstance(source, str) or FILE.fullmatch(source.strip()):
        raise FileNotFoundError(f"{source}: there is no such file")
    return None


def _packed(pieces: Iterable[Piece], most: int) -> Iterator[Passage]:
    held: list[Piece] = []
    left = most
    for piece in pieces:
        cost = weight(str(piece)) + 2
        if held and cost > left:
            yield _passage(held)
            held, left = [], most
        held.append(piece)
        left -= cost
    if held:
        yield _passage(held)


def _passage(pieces: list[Piece]) -> Passage:
    return Passage(pieces[0].anchor, pieces[-1].anchor, "\n\n".join(map(str, pieces)))
