"""Claims held against a document, and documents for programs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from m1agent import ToolError
from m1agent.models.scripted import ScriptedModel
from m1tools.documents import Claim, Document
from m1tools.documents.analyst import Analyst
from m1tools.documents.claims import numbers, quoted, short
from m1tools.documents.document import weight

TEXT = "The *Grey Heron* (Ardea cinerea) was exam-\nined on 12 May; it weighed 1,500 g, not 150. 灰鷺站在水中。"


@pytest.mark.parametrize(
    ("quote", "there"),
    [
        ("Grey Heron (Ardea", True),
        ("the grey heron... it weighed 1500 g", True),
        ("was examined on 12 May", True),
        ("“it weighed 1,500 g”", True),
        ("灰鷺站在", True),
        ("weighed 1,500 g, not 15", False),
        ("weighed 1,500 g, not 150, they say", False),
        ("it weighed ... was examined", False),
        ("wa", False),
        ("...", False),
        ("灰鷺坐在", False),
        ("", False),
    ],
)
def test_what_is_a_quote(quote: str, there: bool) -> None:
    assert quoted(quote, TEXT) is there


def test_a_quote_may_go_on_to_the_next_page_but_not_begin_there() -> None:
    assert quoted("the page ends in the middle", "Here the page ends", "in the middle of a sentence")
    assert not quoted("middle of a sentence", "Here the page ends", "in the middle of a sentence")


@pytest.mark.parametrize(
    ("quote", "text", "is_short"),
    [("heron", TEXT, True), ("it weighed ... g", TEXT, True), ("No.", "No.", False), ("灰鷺站在", TEXT, False)],
)
def test_a_quote_is_long_enough_to_say_something(quote: str, text: str, is_short: bool) -> None:
    assert short(quote, text) is is_short


def test_numbers_however_they_are_grouped() -> None:
    assert numbers("1,500 and 1 500 and 1500; 3.5 % of 12\u202f000") == {"1500", "3.5", "12000"}
    assert numbers("1,234.5; 1.234,5; 12.345.678; 3,75; 0.125; 24.11.2026") == {
        *("1234.5", "12345678", "3.75", "0.125", "24.11.2026")
    }


def read(source: str | Path, **options: Any) -> Document:
    return asyncio.run(Document.read(source, **options))


def test_passages_are_the_document_in_pieces_of_a_size(tmp_path: Path) -> None:
    path = tmp_path / "talk.md"
    path.write_text("\n\n".join(f"# Part {n}\n\nWords of part {n}, 灰鷺. " + "More of them. " * 90 for n in range(40)))
    passages = read(path).passages(9000)
    assert len(passages) > 5 and all(weight(one.text) <= 9000 for one in passages)
    whole = "\n".join(one.text for one in passages)
    assert all(f"[s{n + 1}] Part {n}\nWords of part {n}, 灰鷺." in whole for n in range(40))
    assert passages[0].first == "s1" and passages[-1].last == "s40"
    some = read(path).passages(9000, about='"part 7"')
    assert [(one.first, one.last) for one in some] == [("s8", "s8")]


def test_a_text_itself_is_a_document_and_a_missing_file_is_none(tmp_path: Path) -> None:
    document = read("# One\n\nA heron.\n\n# Two\n\nA pond.")
    assert document.fault(Claim(text="There is a pond.", anchor="s2", quote="A pond.")) == ""
    assert document.fault(Claim(text="It is on Two.", anchor="[s2]", quote="Two: A pond")) == ""
    assert document.fault(Claim(text="A pond.", anchor="s1", quote="Two: A pond")) == (
        "'Two: A pond' is not at s1, but at s2."
    )
    assert read("The heron stands in one line").passages(1000)[0].text.endswith("in one line")
    for missing in ("report.pdf", "my report.docx", "sub/report", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            read(missing)
    with pytest.raises(ToolError, match="expected a file, got a folder"):
        read(tmp_path)


def test_what_was_kept_goes_with_the_file(tmp_path: Path) -> None:
    path, index = tmp_path / "a.txt", tmp_path / "a.db"
    path.write_text("One heron.")
    read(path, index=index).keep("note", "grey")
    assert read(path, index=index).kept("note") == "grey"
    path.write_text("Two herons, and more.")
    assert read(path, index=index).kept("note") is None


def test_numbers_that_cannot_be_meant_are_told() -> None:
    document = read("A heron.\n\nA pond.")
    for options, says in (({"window": 100}, "window must be"), ({"at_once": 0}, "at_once"), ({"budget": 0}, "budget")):
        with pytest.raises(ValueError, match=says):
            Analyst(document, ScriptedModel([]), **options)
    with pytest.raises(ValueError, match="too few for these instructions"):
        asyncio.run(Analyst(document, ScriptedModel([]), window=6000).claims("Note it. " * 2000, Claim))
