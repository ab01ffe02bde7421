"""Changes to a folder, made in copies of it, seen as a diff, tried, and put back whole.

    drafts = await Drafts.begin("project", "/tmp/work")
    draft = await drafts.copy("first")
    (draft.folder / "a.py").write_text("...")
    verdict = await Suite("python -m pytest -q").run(draft)
    if verdict.passed and not await draft.update():
        await draft.land()

The folder is not touched before `land`, which puts in every file or, where someone has changed one of them meanwhile,
none. A program that is killed loses nothing: `Drafts.open` goes on, in the middle of landing too.
"""

from m1tools.draft.drafts import Draft, DraftConflict, DraftError, Drafts
from m1tools.draft.runs import Runs
from m1tools.draft.suite import Suite, Verdict

__all__ = ["Draft", "DraftConflict", "DraftError", "Drafts", "Runs", "Suite", "Verdict"]
