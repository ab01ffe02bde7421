"""Whether a world is as a task wants it: what the task names is changed, everything else is as it was.

`expect` names parts of the state with their new values, `false` for what is gone; `answer` is a pattern, or several,
that the answer must fit whatever the case, `answer_not` what it must not; `now` is a time zone and a format, for
answers that depend on the clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, cast
from zoneinfo import ZoneInfo

from m1agent.bench.tasks.world import State, comparable
from m1agent.problems import shown

SHOWN = 60
STATE = ("files", "git", "graph")


def problems(expect: dict[str, Any], before: State, after: State, answer: str, *, began: datetime) -> list[str]:
    """What is not as it should be, a line each, beginning with the part it is about; nothing where all is.

    Args:
        expect: the task's.
        before, after: the world's state.
        answer: the last words of the run.
        began: when the run did, with a time zone; the clock may have gone past midnight since.
    """
    changes = {part: expect[part] for part in STATE if part in expect}
    if "files" in changes:
        changes["files"] = {name: text and comparable(name, text) for name, text in changes["files"].items()}
    return [*_differences(_changed(before, changes), after), *_unanswered(expect, answer, began)]


def _changed(state: Any, changes: Any) -> Any:
    """`state` with the changes laid over it; `false` takes something away."""
    if not isinstance(changes, dict) or not isinstance(state, dict):
        return sorted(cast("list[Any]", changes)) if _are_lists(changes) else cast("Any", changes)
    new = dict(cast("State", state))
    for name, change in cast("State", changes).items():
        if change is False and name in new:
            del new[name]
        else:
            new[name] = _changed(new.get(name, {}), change)
    return new


def _are_lists(value: Any) -> bool:
    """Relations, whose order says nothing."""
    return isinstance(value, list) and any(isinstance(item, list) for item in cast("list[Any]", value))


def _differences(wanted: Any, found: Any, path: str = "") -> Iterable[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        left, right = cast("State", wanted), cast("State", found)
        for name in [*left, *(name for name in right if name not in left)]:
            where = f"{path}: {name}" if path else name
            if name not in right:
                yield f"{where}: missing"
            elif name not in left:
                yield f"{where}: should not be there"
            else:
                yield from _differences(left[name], right[name], where)
    elif wanted != found:
        yield f"{path}: {shown(found, SHOWN)}, expected {shown(wanted, SHOWN)}"


def _unanswered(expect: dict[str, Any], answer: str, began: datetime) -> Iterable[str]:
    for pattern in _several(expect.get("answer", ())):
        if not re.search(pattern, answer, re.IGNORECASE):
            yield f"answer: {shown(answer, SHOWN)} does not say /{pattern}/"
    for pattern in _several(expect.get("answer_not", ())):
        if re.search(pattern, answer, re.IGNORECASE):
            yield f"answer: {shown(answer, SHOWN)} says /{pattern}/"
    if "now" in expect:
        zone, form = ZoneInfo(expect["now"]["zone"]), expect["now"]["format"]
        times = {moment.astimezone(zone).strftime(form) for moment in (began, datetime.now(began.tzinfo))}
        if not any(time in answer for time in times):
            yield f"answer: {shown(answer, SHOWN)} does not say {' or '.join(sorted(times))}"


def _several(patterns: Any) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)
