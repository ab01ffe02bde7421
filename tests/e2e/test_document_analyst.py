"""`examples/document_analyst.py` on real files much larger than a prompt; the model is scripted."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from docx import Document as Word

from m1agent.errors import ModelError, RunStopped
from m1agent.messages import AssistantMessage, Message, Setup, ToolCall, ToolMessage
from m1agent.models.scripted import ScriptedModel, ScriptedThread
from m1tools.documents import Document
from m1tools.documents.analyst import TOKEN

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGES, WINDOW = 600, 6000
PLACE = re.compile(r"\[(p\d+|s[\d.]+)\][^\n]*\n(?:Chapter[^\n]*\n)?([^.]+\.)")
NOTE = re.compile(r"^(\d+)\. (.+)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def analyst() -> Any:
    return importlib.import_module("document_analyst")


class Measured(ScriptedModel):
    """A scripted model that keeps its threads: the ids of one are all that was read and written there, in bytes."""

    def __init__(self, replies: Sequence[Any]) -> None:
        super().__init__(replies)
        self.threads: list[ScriptedThread] = []

    def open(self, setup: Setup, history: Sequence[Message] = ()) -> ScriptedThread:
        self.threads.append(super().open(setup, history))
        return self.threads[-1]

    @property
    def longest(self) -> int:
        return max(len(thread.ids) for thread in self.threads)


def pdf(pages: Sequence[Sequence[str]]) -> bytes:
    """A PDF of pages of lines, written by hand."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, lines in enumerate(pages):
        stream = f"BT /F1 10 Tf 12 TL 50 800 Td {' '.join(f'({line}) Tj T*' for line in lines)} ET"
        resources = "/MediaBox [0 0 612 842] /Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R {resources} /Contents {5 + 2 * i} 0 R >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, places = io.BytesIO(), list[int]()
    out.write(b"%PDF-1.4\n")
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1"))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % place for place in places)
    out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start))
    return out.getvalue()


def page(number: int) -> list[str]:
    filler = [f"Line {line} of it says at some length that nothing else was to be reported here." for line in range(24)]
    odd = ["A heron was seen at the old", "quarry pond, for the first time since 1987."] if number == 437 else []
    return [f"Chapter {number}", f"On day {number} the survey counted {number * 3} birds.", *filler, *odd]


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A PDF of 600 pages, and the index of what was read of it."""
    folder = tmp_path_factory.mktemp("survey")
    path, index = folder / "survey.pdf", folder / "survey.db"
    path.write_bytes(pdf([page(number) for number in range(1, PAGES + 1)]))
    asyncio.run(Document.read(path, index=index))
    return path, index


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The first 90 pages of it."""
    path = tmp_path / "small.pdf"
    path.write_bytes(pdf([page(number) for number in range(1, 91)]))
    return path


def claim(text: str, anchor: str, quote: str, **more: Any) -> dict[str, Any]:
    return {"text": text, "anchor": anchor, "quote": quote, **more}


def call(name: str, **arguments: Any) -> AssistantMessage:
    return AssistantMessage(calls=(ToolCall("", name, arguments),))


def reader(messages: tuple[Message, ...], **more: Any) -> str:
    """A model that notes the first sentence of each place of a passage, and merges notes in threes."""
    asked = str(getattr(messages[0], "text", ""))
    if asked.startswith("At most"):
        most, notes = int(asked.split()[2]), NOTE.findall(asked)
        drafts = [
            {"text": notes[at][1], "sources": [int(number) for number, _ in notes[at : at + 3]]}
            for at in range(0, len(notes), 3)
        ]
        return json.dumps(drafts[:most])
    places = PLACE.findall(asked)[:8]
    return json.dumps([claim(" ".join(text.split()), anchor, text, **more) for anchor, text in places])


# Summaries


def test_a_summary_of_600_pages_within_its_window(survey: tuple[Path, Path]) -> None:
    model, seen = Measured([reader] * 1000), list[tuple[str, int, int]]()

    def progress(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))

    made = analyst().analyze_document(survey[0], model=model, index=survey[1], window=WINDOW, progress=progress)
    assert survey[0].stat().st_size > 50 * WINDOW * TOKEN
    assert len(model.requests) > 100
    assert model.longest <= WINDOW * TOKEN, "what is read and written in one conversation"
    assert 1 <= len(made.points) <= 12 and not made.dropped and not made.notes
    held = [one for point in made.points for one in point.claims]
    assert all(
        one.text == f"On day {one.anchor[1:]} the survey counted {int(one.anchor[1:]) * 3} birds." for one in held
    )
    assert re.search(r"^- On day \d+ the survey counted \d+ birds\. \[p\d+, p\d+", str(made), re.MULTILINE)
    reading = [one for one in seen if one[0] == "reading"]
    assert [done for _, done, _ in reading] == list(range(1, reading[0][2] + 1))
    assert ("merging", 1, 1) in seen, "the last round is one prompt"


def test_claims_that_do_not_stand_where_they_say_are_dropped_and_counted(survey: tuple[Path, Path]) -> None:
    text = "# One\n\nThe bridge was closed in March for 12 days.\n\n# Two\n\nIt cost 40,000 crowns to re-\nopen it.\n"
    wrong = [
        claim("The bridge was closed.", "s2", "The bridge was closed in March"),
        claim("It was closed for 21 days.", "s1", "closed in March for 12 days"),
        claim("It fell down.", "s1", "The bridge fell down"),
        claim("Something.", "s9", "The bridge was closed in March"),
        claim("It was in March.", "s1", "in"),
        claim("Reopening cost 40000 crowns.", "s2", "It cost 40,000 crowns to reopen it"),
    ]
    right = [wrong[5], claim("It was closed in spring.", "s1", "The bridge ... for 12 days"), wrong[2]]
    model = ScriptedModel([json.dumps(wrong), json.dumps(right)])
    made = analyst().analyze_document(text, model=model)
    model.assert_complete()
    told = model.requests[1].messages[-1].text
    assert "'The bridge was closed in March' is not at s2, but at s1." in told
    assert "- 21 is not at s1." in told
    assert "'The bridge fell down' is not at s1." in told
    assert "There is no anchor 's9'" in told
    assert "'in' is too short: quote more words." in told
    assert "40" not in told
    assert [str(point) for point in made.points] == [
        "Reopening cost 40000 crowns. [s2]",
        "It was closed in spring. [s1]",
    ]
    assert made.dropped == ["It fell down. ('The bridge fell down' is not at s1.)"]
    assert "1 claim was dropped" in str(made)


def test_points_are_made_of_notes_that_are_there() -> None:
    text = "\n\n".join(f"# Day {day}\n\nThe pond was {day * 11} cm deep that day." for day in range(1, 7))
    notes = [claim(f"It was {day * 11} cm deep.", f"s{day}", f"The pond was {day * 11} cm deep") for day in range(1, 7)]
    bad = [{"text": "It rose by 99 cm.", "sources": [1, 2]}, {"text": "It rose.", "sources": [7]}]
    good = [{"text": "It rose from 11 cm to 66 cm.", "sources": [1, 6]}, bad[1]]
    model = ScriptedModel([json.dumps(one) for one in (notes, bad, good)])
    made = analyst().analyze_document(text, model=model, points=3)
    model.assert_complete()
    told = model.requests[-1].messages[-1].text
    assert "its notes do not have 99" in told and "there is no note 7" in told
    assert [str(point) for point in made.points] == ["It rose from 11 cm to 66 cm. [s1, s6]"]
    assert len(made.dropped) == 1 and made.dropped[0].startswith("It rose. (")


def test_a_stopped_reading_goes_on_where_it_was(small: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.db"
    summarise = analyst().analyze_document
    whole = ScriptedModel([reader] * 1000)
    summarise(small, model=whole, window=WINDOW, index=tmp_path / "whole.db")
    with pytest.raises(RunStopped, match="no reply left"):
        summarise(small, model=ScriptedModel([reader] * 10), window=WINDOW, index=index)
    rest = ScriptedModel([reader] * 1000)
    made = summarise(small, model=rest, window=WINDOW, index=index)
    assert len(rest.requests) == len(whole.requests) - 10 > 0
    again = ScriptedModel([])
    assert summarise(small, model=again, window=WINDOW, index=index) == made
    small.touch()
    with pytest.raises(RunStopped):
        summarise(small, model=again, window=WINDOW, index=index)  # A changed file is read again.


def test_a_passage_without_a_usable_answer_is_told_and_the_rest_is_read(small: Path) -> None:
    failing = ModelError("the server hung up")
    model = ScriptedModel([reader, failing, reader, "no JSON", "none", "still none", *[reader] * 1000])
    made = analyst().analyze_document(small, model=model, window=WINDOW, at_once=1)
    assert len(made.points) > 0
    assert len(made.notes) == 2 and all(note.startswith("Not read, the model gave no usable") for note in made.notes)
    assert "the server hung up" in made.notes[0]


def test_a_model_that_answers_nowhere_is_no_finding() -> None:
    model = ScriptedModel([ModelError("the server is away")])
    with pytest.raises(RunStopped, match="the server is away"):
        analyst().analyze_document("One short page.", model=model)


def test_a_budget_ends_the_reading_and_says_where(small: Path, tmp_path: Path) -> None:
    model, budget = Measured([reader] * 1000), 130_000
    options: dict[str, Any] = {"window": WINDOW, "budget": budget, "at_once": 1, "index": tmp_path / "index.db"}
    summarise = analyst().analyze_document
    made = summarise(small, model=model, **options)
    assert budget / 2 < sum(len(thread.ids) for thread in model.threads) <= budget
    stopped = re.search(r"The budget ended the reading before p(\d+)\.", str(made))
    assert stopped and 20 < int(stopped[1]) < 90
    assert max(int(one.anchor[1:]) for point in made.points for one in point.claims) < int(stopped[1])
    more = summarise(small, model=Measured([reader] * 1000), **options)
    further = re.search(r"before p(\d+)\.", str(more))
    assert further is None or int(further[1]) > int(stopped[1]), "what was read before costs nothing again"


# Questions


def test_a_question_is_answered_by_searching(survey: tuple[Path, Path]) -> None:
    def found(messages: tuple[Message, ...]) -> str:
        result = messages[-1]
        assert isinstance(result, ToolMessage)
        anchor = result.results[0].content.partition("]")[0].strip("[")
        return json.dumps([claim("A heron was seen for the first time since 1987.", anchor, "at the old quarry pond")])

    model = Measured([call("search_document", query="herons"), found])
    made = analyst().analyze_document(
        survey[0], "qa", "When was a heron seen?", model=model, index=survey[1], window=WINDOW
    )
    model.assert_complete()
    assert [str(point) for point in made.points] == ["A heron was seen for the first time since 1987. [p437]"]
    assert model.requests[0].envelope.choice == "required", "an answer by heart is none"
    assert model.longest < 9000


def test_however_much_is_read_the_prompt_stays_within_its_window(survey: tuple[Path, Path]) -> None:
    def greedy(messages: tuple[Message, ...]) -> Any:
        read = sum(isinstance(message, ToolMessage) for message in messages)
        if read and not isinstance(messages[-1], ToolMessage):  # No call is possible any more.
            return "[]"
        return call("read_document", anchor=f"p{1 + 40 * read}", until="p600")

    model = Measured([greedy] * 100)
    made = analyst().analyze_document(survey[0], "qa", "What now?", model=model, index=survey[1], window=WINDOW)
    assert made.points == [] and "- Not in the document." in str(made)
    assert WINDOW * TOKEN / 2 < model.longest <= WINDOW * TOKEN


def test_what_is_not_there_is_said_not_to_be_there(survey: tuple[Path, Path]) -> None:
    invented = claim("It cost 5 million.", "p12", "the cost was 5 million")
    search = call("search_document", query="cost price")
    for last in ([], [invented]):
        model = ScriptedModel([search, json.dumps([invented]), json.dumps(last)])
        made = analyst().analyze_document(survey[0], "qa", "What did it cost?", model=model, index=survey[1])
        assert "Nothing matches" in str(model.requests[1].messages)
        assert "'the cost was 5 million' is not at p12." in model.requests[2].messages[-1].text
        assert made.points == [] and len(made.dropped) == len(last)
        assert "- Not in the document." in str(made)


def test_a_question_goes_with_qa_alone() -> None:
    with pytest.raises(ValueError, match="question: expected one for 'qa'"):
        analyst().analyze_document("Some text.", "qa", model=ScriptedModel([]))
    with pytest.raises(ValueError, match="none for 'summary'"):
        analyst().analyze_document("Some text.", question="Why?", model=ScriptedModel([]))


# Insights


def test_insights_of_word_and_html(tmp_path: Path) -> None:
    word, html = tmp_path / "plan.docx", tmp_path / "plan.html"
    document = Word()
    document.add_heading("Plan", 1)
    document.add_paragraph("The harbour opens in May. Nobody has asked the fishermen yet.")
    document.save(str(word))
    html.write_text(
        "<title>Plan</title><h1>Plan</h1><p>The harbour <b>opens</b> in May.<p>Nobody has asked the fishermen"
    )
    found = [
        claim("It opens in May.", "s1", "The harbour opens in May", kind="date", importance=3),
        claim("It opens in May, it says.", "s1", "the harbour opens in May", kind="date", importance=3),
        claim("The fishermen were not asked.", "s1", "Nobody has asked the fishermen", kind="risk", importance=5),
    ]
    for path in (word, html):
        made = analyst().extract_insights(path, model=ScriptedModel([json.dumps(found)]), most=2)
        assert [(one.kind, one.importance) for one in made.insights] == [("date", 3), ("risk", 5)]
        assert "- (risk) The fishermen were not asked. [s1]" in str(made)


def test_insights_on_something_are_read_where_a_search_leads(survey: tuple[Path, Path]) -> None:
    model = Measured([lambda messages: reader(messages, kind="figure", importance=1)] * 10)
    made = analyst().extract_insights(survey[0], "heron quarry", model=model, index=survey[1])
    assert len(model.requests) == 1 and [one.anchor for one in made.insights] == ["p437"]


# The program


def run(*words: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(EXAMPLES / "document_analyst.py"), *map(str, words)]
    return subprocess.run(program, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_from_the_command_line(survey: tuple[Path, Path], served: tuple[str, ScriptedModel]) -> None:
    name, model = served
    model.extend([reader] * 1000)
    done = run(survey[0], "--model", name, "--points", 5, "--index", survey[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("survey.pdf: 'Chapter 1' PDF, 600 pages")
    assert 1 <= len(re.findall(r"^- On day \d+ .* \[p\d+", done.stdout, re.MULTILINE)) <= 5
    assert "merging: 100%" in done.stderr
    model.clear()
    model.extend([call("search_document", query="fish"), "[]"])
    done = run(survey[0], "--model", name, "--question", "How many fish?", "--index", survey[1], "--json")
    assert json.loads(done.stdout)["points"] == [], done.stderr


def test_bad_input_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    (tmp_path / "empty.txt").touch()
    for words, told in (
        ((tmp_path / "none.pdf", "--model", "m1-nano"), f"{tmp_path / 'none.pdf'}: there is no such file"),
        ((tmp_path / "broken.pdf", "--model", "m1-nano"), "broken.pdf: it is"),
        ((tmp_path / "empty.txt", "--model", "m1-nano"), "empty.txt: there is no text in it"),
        ((tmp_path / "none.pdf", "--model", "nosuch"), "there is no model 'nosuch'"),
        ((EXAMPLES / "README.md", "--model", "m1-nano", "--window", 100), "window must be at least 6000"),
    ):
        monkeypatch.setattr(sys, "argv", ["document_analyst.py", *map(str, words)])
        assert analyst().main() == 1
        out, err = capsys.readouterr()
        assert out == "" and f"document_analyst: {told}" in err
