"""A code reviewer: findings with their lines, backed by compile, ruff and bandit.

pip install ruff bandit
python examples/code_reviewer.py app.py --model path/to/a/checkpoint
python examples/code_reviewer.py . --revision main --model path/to/a/checkpoint

code_improver.py suggests patches.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from code_improver import Suggestion, suggest_improvements
from pydantic import BaseModel, Field
from unidiff.patch import PatchSet

from m1agent import Agent, M1AgentError, Retry, tool
from m1agent.models.base import Model

__all__ = ["Finding", "Review", "Suggestion", "check", "review_code", "review_diff", "suggest_improvements"]

RULES = "E4,E7,E9,F,B,C4,C90,PERF,SIM,UP"
CATEGORIES = {"F": "bug", "B": "bug", "E9": "bug", "PERF": "performance", "C4": "performance", "UP": "practice"}
LANGUAGES = {".py": "python", ".js": "javascript", ".ts": "typescript", ".rs": "rust", ".go": "go", ".c": "c"}
REVIEWER = (
    "You review code for quality, bugs, performance, practice and security. Run the checks first where there are any. "
    "For what a check found, give its rule; for what you found yourself, leave rule empty. Judge only what is there."
)


class Finding(BaseModel):
    line: int = Field(ge=1)
    category: Literal["quality", "bug", "performance", "practice", "security"]
    severity: Literal["low", "medium", "high"]
    message: str
    rule: str = Field("", description="Of the check that found it, for example F841 or B602.")


class Review(BaseModel):
    summary: str
    findings: list[Finding]


def language_of(path: Path) -> str:
    """By the file's ending."""
    return LANGUAGES.get(path.suffix, path.suffix.lstrip("."))


def check(code: str, language: str) -> list[Finding]:
    """What compile, ruff and bandit find in Python; nothing is known of other languages, and nothing is run."""
    if language != "python":
        return []
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(code, "code.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        return [Finding(line=line, category="bug", severity="high", message=f"does not compile: {error}", rule="E999")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code.py")
        path.write_text(code, encoding="utf-8")
        lint = _json("ruff", "check", "--isolated", "--no-cache", "--select", RULES, "--output-format=json", str(path))
        scan = _json("bandit", "--quiet", "--format=json", str(path))
    return [
        *(_of_ruff(one) for one in lint),
        *(
            Finding(line=one["line_number"], category="security", severity=one["issue_severity"].lower(),
                    message=one["issue_text"], rule=one["test_id"])
            for one in scan["results"]
        ),
    ]  # fmt: skip


def review_code(
    code: str, language: str = "python", *, model: str | Path | Model, lines: Iterable[int] | None = None
) -> Review:
    """Findings in `code`, of the model and of the checks; only those of `lines`, where given.

    Each line is there, each rule was found by a check on that line, and what the checks found is never left out.

    Raises:
        RunStopped: the model gave no such review.
    """
    listed = code.removesuffix("\n").split("\n")
    changed = None if lines is None else sorted(set(lines))
    found = [one for one in check(code, language) if changed is None or one.line in changed]
    allowed = {*(range(1, len(listed) + 1) if changed is None else changed), *(one.line for one in found)}
    backed = {(one.line, one.rule) for one in found}

    @tool
    def run_checks() -> list[dict[str, Any]]:
        """Compile the code and run ruff and bandit on it."""
        return [one.model_dump() for one in found]

    def judged(review: Review) -> Retry | None:
        for one in review.findings:
            if one.line not in allowed:
                return Retry(f"Line {one.line} is not among those to review.")
            if one.rule and (one.line, one.rule) not in backed:
                return Retry(f"No check found {one.rule} on line {one.line}. Without a check, leave rule empty.")
        return None

    tools = [run_checks] if language == "python" else []
    shown = "\n".join(f"{number}\t{line}" for number, line in enumerate(listed, 1))
    only = "" if changed is None else f" Only lines {', '.join(map(str, changed))} changed: judge these."
    with Agent(model, tools, REVIEWER, output=Review, output_guards=[judged]) as agent:
        review = agent.run_sync(f"Review this {language} code.{only}\n\n{shown}").unwrap()
    told = {(one.line, one.rule) for one in review.findings}
    left_out = [one for one in found if (one.line, one.rule) not in told]
    return Review(summary=review.summary, findings=sorted([*review.findings, *left_out], key=lambda one: one.line))


def review_diff(repository: str | Path, revision: str = "HEAD", *, model: str | Path | Model) -> dict[str, Review]:
    """A review, by file, of the lines that changed since a revision. Raises ValueError with what git says."""
    known = subprocess.run(["git", "rev-parse", "--git-dir"], cwd=repository, capture_output=True)
    if known.returncode:
        raise ValueError(f"{repository}: not a git repository; give one, or a file")
    plain = ["--no-ext-diff", "--no-color", "--src-prefix=a/", "--dst-prefix=b/", "--relative", "-U0"]
    words = ["git", "-c", "core.quotePath=false", "diff", *plain, "--end-of-options", revision, "--"]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{repository}: {done.stderr.partition(chr(10))[0]}")
    reviews: dict[str, Review] = {}
    for file in PatchSet(done.stdout):
        lines = [line.target_line_no or 0 for hunk in file for line in hunk if line.is_added]
        path = Path(repository, file.path)
        if lines and not path.is_symlink():
            code = path.read_text(encoding="utf-8", errors="replace")
            reviews[file.path] = review_code(code, language_of(path), model=model, lines=lines)
    return reviews


def _of_ruff(one: dict[str, Any]) -> Finding:
    rule = one["code"] or "E999"
    category: Any = next((found for start, found in CATEGORIES.items() if rule.startswith(start)), "quality")
    severity = "high" if category == "bug" and rule != "F401" else "low"
    return Finding(line=one["location"]["row"], category=category, severity=severity, message=one["message"], rule=rule)


def _json(module: str, *words: str) -> Any:
    """What a checker prints; its exit status only says whether it found something."""
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if not done.stdout.strip():
        raise RuntimeError(f"{module}: {done.stderr.strip()}; install it with pip install {module}")
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint folder, hf:..., openai:...; m1-nano is too small")
    parser.add_argument("path", type=Path, help="a file, or a repository whose changed lines are reviewed")
    parser.add_argument("--revision", default="HEAD", help="of a repository: what changed since then")
    given = parser.parse_args()
    try:
        if given.path.is_dir():
            reviews = review_diff(given.path, given.revision, model=given.model)
        else:
            code = given.path.read_text(encoding="utf-8")
            reviews = {str(given.path): review_code(code, language_of(given.path), model=given.model)}
    except (M1AgentError, OSError, RuntimeError, ValueError) as error:
        print(f"code_reviewer: {error}", file=sys.stderr)
        return 1
    for name, review in reviews.items():
        print(f"{name}: {review.summary}")
        for one in review.findings:
            print(f"  {name}:{one.line}: {one.severity} {one.category} {one.rule}: {one.message}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
