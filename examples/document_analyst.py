"""A document analyst: summaries, answers and insights of documents far larger than the model's context.

python examples/document_analyst.py report.pdf --model path/to/a/checkpoint
python examples/document_analyst.py report.pdf --question "What did it cost?" --model openai:NAME@http://localhost:8000/v1
python examples/document_analyst.py report.pdf --insights --about "risks" --index report.db --model ...

PDF, DOCX, HTML, Markdown and text, read page by page or searched, never put into a prompt as a whole. Each sentence
carries the page or section it stands on; one whose quoted words are not there is dropped, and counted. With --index the
same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field
from tqdm import tqdm

from m1agent import M1AgentError, load_model
from m1agent.cli_agent import positive
from m1agent.models.base import Model
from m1tools.documents import Claim, Document
from m1tools.documents.analyst import Analyst, Point

Kind = Literal["finding", "figure", "decision", "risk", "person", "date", "open question"]
NOTE = "Note from this part of a document what a summary of the whole must not leave out."
MERGE = "Sum up a document by notes of its parts: what it is about first, then what matters most, nothing twice."
ANSWER = "Answer the question by the document. Search it, in several wordings, and read the places before you answer."
INSIGHTS = "Note the insights of this part of a document: what a reader who decides something would want to know."


class Insight(Claim):
    """A claim of a kind, and how much it matters."""

    kind: Kind
    importance: int = Field(ge=1, le=5, description="5 is what decides something.")


class Analysis(BaseModel):
    """What the document bears out, with its anchors; `dropped` is what it did not, and `notes` what was not read."""

    title: str
    question: str = ""
    points: list[Point] = []
    insights: list[Insight] = []
    dropped: list[str] = []
    notes: list[str] = []

    def __str__(self) -> str:
        nothing = "Not in the document." if self.question else "Nothing was found that the document bears out."
        told = [*map(str, self.points), *(f"({one.kind}) {one}" for one in self.insights)] or [nothing]
        count = len(self.dropped)
        left = [f"{count} {'claim was' if count == 1 else 'claims were'} dropped: not where it says."] if count else []
        return "\n".join([self.title, "", *(f"- {line}" for line in told), "", *left, *self.notes]).rstrip()


def analyze_document(
    text_or_path: str | Path,
    analysis: Literal["summary", "qa"] = "summary",
    question: str | None = None,
    *,
    model: str | Path | Model,
    points: int = 12,
    index: str | Path | None = None,
    **options: Any,
) -> Analysis:
    """A summary of at most so many points, or the answer to a question; `options` are those of `Analyst`.

    Raises:
        ValueError: "qa" without a question, or a question without "qa"; a document without text.
        FileNotFoundError, ToolError: there is no such document, or it cannot be read.
        RunStopped: the model failed. With `index`, what it said before is kept.
    """
    if (analysis == "qa") != bool(question):
        raise ValueError("question: expected one for 'qa', and none for 'summary'")

    async def work(analyst: Analyst) -> dict[str, Any]:
        if question:
            claims = await analyst.answer(question, ANSWER)
            return {"question": question, "points": [Point(text=one.text, claims=[one]) for one in claims]}
        return {"points": await analyst.merged(await analyst.claims(NOTE, Claim), MERGE, points)}

    return asyncio.run(_analysed(text_or_path, model, index, options, work))


def extract_insights(
    text_or_path: str | Path,
    about: str = "",
    *,
    model: str | Path | Model,
    most: int = 30,
    index: str | Path | None = None,
    **options: Any,
) -> Analysis:
    """The most important insights, in the document's order; with `about` from where a search for that leads.

    Raises:
        FileNotFoundError, ToolError, RunStopped: as `analyze_document`.
    """

    async def work(analyst: Analyst) -> dict[str, Any]:
        found = await analyst.claims(INSIGHTS, Insight, about=about)
        once = list({(one.anchor, one.quote.casefold()): one for one in found}.values())
        kept = sorted(once, key=lambda one: -one.importance)[:most]
        return {"insights": [one for one in once if one in kept]}

    return asyncio.run(_analysed(text_or_path, model, index, options, work))


async def _analysed(source: str | Path, model: str | Path | Model, index: Any, options: Any, work: Any) -> Analysis:
    loaded = load_model(model) if isinstance(model, str | Path) else model
    try:
        document = await Document.read(source, index=index)
        if not document.passages(1):
            raise ValueError(f"{document.name}: there is no text in it")
        analyst = Analyst(document, loaded, **options)
        found = await work(analyst)
    finally:
        if loaded is not model:
            await loaded.aclose()
    notes = [f"Not read, the model gave no usable answer: {one}" for one in analyst.skipped]
    if analyst.unread:
        notes.append(f"The budget ended the reading before {analyst.unread}.")
    dropped = [f"{claim.text} ({why})" for claim, why in analyst.dropped]
    return Analysis(title=analyst.document.told, dropped=dropped, notes=notes, **found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint folder, hf:..., openai:...; m1-nano is too small")
    parser.add_argument("document", type=Path)
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--question", metavar="TEXT", help="answer this, in place of a summary")
    asked.add_argument("--insights", action="store_true", help="list insights, in place of a summary")
    parser.add_argument("--about", default="", metavar="WORDS", help="only insights on this")
    parser.add_argument("--points", type=positive, default=12, metavar="N", help="of a summary at most")
    parser.add_argument("--index", metavar="FILE", help="keep what was read, and what the model said of it")
    parser.add_argument("--window", type=positive, default=16_000, metavar="TOKENS", help="of one prompt at most")
    parser.add_argument("--budget", type=positive, metavar="TOKENS", help="of everything; then reading stops")
    parser.add_argument("--json", action="store_true", help="print quotes and dropped claims, too")
    given = parser.parse_args()
    options = {name: getattr(given, name) for name in ("model", "index", "window", "budget")}
    if given.question is not None and not given.question.strip():
        parser.error("--question is empty")
    try:
        with tqdm(file=sys.stderr, unit="reply", delay=0.1, disable=given.question is not None) as bar:

            def progress(stage: str, done: int, total: int) -> None:
                bar.desc, bar.total, bar.n = f"{stage}: ", total, done
                bar.refresh()

            options["progress"] = progress
            if given.insights:
                made = extract_insights(given.document, given.about, **options)
            else:
                how: Any = "qa" if given.question else "summary"
                made = analyze_document(given.document, how, given.question, points=given.points, **options)
    except (M1AgentError, OSError, ValueError) as error:
        print(f"document_analyst: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndocument_analyst: stopped; with --index the same command goes on", file=sys.stderr)
        return 130
    print(json.dumps(made.model_dump(), ensure_ascii=False, indent=2) if given.json else made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
