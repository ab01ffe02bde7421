"""`m1tools.draft`: copies of folders on real files, repositories and processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from m1agent import ToolError
from m1tools.draft import Draft, DraftConflict, DraftError, Drafts, Runs, Suite, shadow
from m1tools.sandbox import Bounds

from .conftest import plain_git


@pytest.fixture(params=["repository", "plain"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with everything a folder may hold; with and without git."""
    root = tmp_path / "project"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg" / "a.py").write_text("one\ntwo\nthree\n")
    (root / "pkg" / "b.py").write_text("b\n")
    (root / ".gitignore").write_text("*.log\nbuild/\n")
    if request.param == "repository":
        plain_git(root, "init", "-q", "-b", "main")
        plain_git(root, "config", "user.name", "Ada")
        plain_git(root, "config", "user.email", "ada@example.com")
        plain_git(root, "add", ".")
        plain_git(root, "commit", "-qm", "First")
    (root / "pkg" / "a.py").write_text("one\ntwo\nthree\nnot committed\n")
    (root / ".gitattributes").write_text("* text=auto eol=lf\n*.bin filter=lfs\n")
    (root / "crlf.txt").write_bytes(b"a\r\nb\r\n")
    (root / "pic.bin").write_bytes(bytes(range(256)))
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("pkg/a.py")
    Path(os.fsdecode(os.fsencode(root) + b"/n\xffme \xc3\xa9\n.txt")).write_text("x")
    (root / "debug.log").write_text("secret")
    (root / ".venv").mkdir()
    (root / ".venv" / "big").write_text("x")
    return root


def contents(folder: Path, *, git: bool = False) -> dict[str, tuple[int, bytes]]:
    """Every file and link below a folder, with its mode."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = (0, os.fsencode(os.readlink(path)))
        elif path.is_file() and (git or not name.startswith(".git/")):
            found[name] = (path.stat().st_mode, path.read_bytes())
    return found


def ignored(names: dict[str, Any]) -> dict[str, Any]:
    return {name: what for name, what in names.items() if name != "debug.log" and not name.startswith(".venv")}


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    return anyio.run(work)


def drafted(folder: Path, place: Path, work: Callable[[Draft], Awaitable[Any]], **options: Any) -> Any:
    """What is done with the only draft of a folder."""

    async def do() -> Any:
        with await Drafts.begin(folder, place, **options) as drafts:
            return await work(await drafts.copy("one"))

    return run(do)


def test_a_copy_is_byte_for_byte_and_touches_nothing(folder: Path, tmp_path: Path) -> None:
    before = contents(folder, git=True)

    async def look(draft: Draft) -> None:
        assert contents(draft.folder) == ignored(contents(folder))
        assert (await draft.diff(), await draft.changed(), await draft.lines()) == (b"", (), 0)
        assert not await draft.update()
        assert await draft.land() == ()

    drafted(folder, tmp_path / "place", look)
    assert contents(folder, git=True) == before


def change(root: Path) -> None:
    """Every kind of change."""
    (root / "pkg" / "a.py").write_text("one\n2\nthree\nnot committed\n")
    (root / "pkg" / "b.py").unlink()
    (root / "pkg" / "deep" / "er").mkdir(parents=True)
    (root / "pkg" / "deep" / "er" / "new.py").write_text("new\n")
    (root / "crlf.txt").write_bytes(b"a\r\nB\r\n")
    (root / "pic.bin").write_bytes(bytes(reversed(range(256))))
    (root / "run.sh").chmod(0o644)
    (root / "link").unlink()
    (root / "link").symlink_to("run.sh")


CHANGED = ["crlf.txt", "link", "pic.bin", "pkg/a.py", "pkg/b.py", "pkg/deep/er/new.py", "run.sh"]


def test_everything_lands(folder: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        change(draft.folder)
        assert sorted(await draft.changed()) == CHANGED
        assert await draft.made() == ("pkg/deep/er/new.py",)
        assert b"-two\n+2\n" in await draft.diff() and b"GIT binary patch" in await draft.diff()
        assert sorted(await draft.land()) == CHANGED
        assert draft.drafts.landed == "one" and draft.drafts.landing == ""

    kept = {name: contents(folder)[name] for name in ("debug.log", ".venv/big")}
    drafted(folder, tmp_path / "place", work)
    assert contents(folder) == contents(tmp_path / "place" / "one") | kept


def test_a_diff_is_one_for_git(folder: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> bytes:
        change(draft.folder)
        return await draft.diff()

    patch = tmp_path / "patch"
    patch.write_bytes(drafted(folder, tmp_path / "place", work))
    (folder / ".gitattributes").unlink()  # Which would have git change the ends of lines.
    plain_git(folder, "apply", "--whitespace=nowarn", str(patch))
    landed = contents(folder)
    assert {name: landed.get(name) for name in CHANGED} == {
        name: contents(tmp_path / "place" / "one").get(name) for name in CHANGED
    }


def test_files_and_folders_change_places(folder: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        (draft.folder / "pkg" / "a.py").unlink()
        (draft.folder / "pkg" / "b.py").unlink()
        (draft.folder / "pkg").rmdir()
        (draft.folder / "pkg").write_text("a file")
        (draft.folder / "run.sh").unlink()
        (draft.folder / "run.sh").mkdir()
        (draft.folder / "run.sh" / "inside").write_text("x")
        await draft.land()

    drafted(folder, tmp_path / "place", work)
    assert (folder / "pkg").read_text() == "a file"
    assert (folder / "run.sh" / "inside").read_text() == "x"


def test_a_folder_with_something_of_its_own_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    (folder / "pkg" / "kept.log").write_text("ignored")
    before = contents(folder)

    async def work(draft: Draft) -> None:
        for path in (draft.folder / "pkg").iterdir():
            path.unlink()
        (draft.folder / "pkg").rmdir()
        (draft.folder / "pkg").write_text("a file")
        with pytest.raises(DraftConflict, match="pkg"):
            await draft.land()

    drafted(folder, tmp_path / "place", work)
    assert contents(folder) == before


def test_what_was_changed_meanwhile_is_taken_up(folder: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        path = draft.folder / "pkg" / "a.py"
        path.write_text(path.read_text().replace("three", "3"))
        (folder / "pkg" / "a.py").write_text("zero\none\ntwo\nthree\nnot committed\n")
        (folder / "other").write_text("x")
        before = contents(folder)
        with pytest.raises(DraftConflict, match=r"pkg/a\.py"):
            await draft.land()
        assert contents(folder) == before
        assert await draft.update()
        assert path.read_text() == "zero\none\ntwo\n3\nnot committed\n" and (draft.folder / "other").exists()
        assert await draft.changed() == ("pkg/a.py",)
        assert not await draft.update()
        assert await draft.land() == ("pkg/a.py",)

    drafted(folder, tmp_path / "place", work)
    assert (folder / "pkg" / "a.py").read_text() == "zero\none\ntwo\n3\nnot committed\n"


def test_the_same_lines_changed_by_both_are_a_conflict(folder: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        (draft.folder / "pkg" / "a.py").write_text("one\n2\nthree\nnot committed\n")
        (folder / "pkg" / "a.py").write_text("one\nII\nthree\nnot committed\n")
        before, ours = contents(folder), contents(draft.folder)
        with pytest.raises(DraftConflict, match=r"both sides: pkg/a\.py") as caught:
            await draft.update()
        assert caught.value.paths == ("pkg/a.py",)
        assert (contents(folder), contents(draft.folder)) == (before, ours)

    drafted(folder, tmp_path / "place", work)


def test_nothing_that_is_ignored_is_overwritten(folder: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        (draft.folder / ".gitignore").unlink()
        (draft.folder / "debug.log").write_text("mine")
        with pytest.raises(DraftConflict, match=r"debug\.log"):
            await draft.land()

    drafted(folder, tmp_path / "place", work)
    assert (folder / "debug.log").read_text() == "secret" and (folder / ".gitignore").exists()


def test_a_folder_that_became_a_link_leads_nowhere(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    async def work(draft: Draft) -> None:
        (draft.folder / "pkg" / "new.py").write_text("x")
        (folder / "pkg").rename(folder / "away")
        (folder / "pkg").symlink_to(outside)
        with pytest.raises(DraftConflict, match=r"pkg/new\.py"):
            await draft.land()

    drafted(folder, tmp_path / "place", work)
    assert list(outside.iterdir()) == []


def test_a_file_in_the_way_of_a_new_folder_is_left(folder: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        change(draft.folder)
        (draft.folder / "made").mkdir()
        (draft.folder / "made" / "x").write_text("x")
        (folder / "made").write_text("mine")
        before = contents(folder)
        with pytest.raises(DraftConflict, match="in the way of a folder that was made: made"):
            await draft.land()
        assert contents(folder) == before and not draft.drafts.landing

    drafted(folder, tmp_path / "place", work)


def test_a_folder_takes_the_place_of_a_link(folder: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        (draft.folder / "link").unlink()
        (draft.folder / "link").mkdir()
        (draft.folder / "link" / "x").write_text("x")
        assert await draft.land() == ("link", "link/x")

    drafted(folder, tmp_path / "place", work)
    assert not (folder / "link").is_symlink() and (folder / "link" / "x").read_text() == "x"


def test_what_is_changed_while_a_draft_lands_is_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone saves a file after it was looked at and before it is its turn."""
    read = shadow.Shadow.bytes_of

    async def read_slowly(self: shadow.Shadow, entry: Any) -> bytes:
        (folder / "run.sh").write_text("mine")
        return await read(self, entry)

    async def work(draft: Draft) -> None:
        (draft.folder / "crlf.txt").write_text("changed")
        (draft.folder / "run.sh").write_text("changed")
        monkeypatch.setattr(shadow.Shadow, "bytes_of", read_slowly)
        with pytest.raises(DraftConflict, match=r"changed meanwhile.*run\.sh"):
            await draft.land()
        assert draft.drafts.landing == "one"

    drafted(folder, tmp_path / "place", work)
    assert (folder / "crlf.txt").read_text() == "changed" and (folder / "run.sh").read_text() == "mine"


def test_a_file_too_large_says_so_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m1tools.draft.drafts.MOST_OF_A_FILE", 20)
    before = contents(folder)

    async def work(draft: Draft) -> None:
        (draft.folder / "crlf.txt").write_text("changed")
        (draft.folder / "run.sh").write_text("x" * 21)
        with pytest.raises(DraftError, match=r"run\.sh is larger than"):
            await draft.land()
        assert not draft.drafts.landing

    drafted(folder, tmp_path / "place", work)
    assert contents(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_says_so_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        change(draft.folder)
        (folder / "pkg").chmod(0o555)
        with pytest.raises(DraftError, match="cannot be written"):
            await draft.land()

    before = contents(folder)
    drafted(folder, tmp_path / "place", work)
    assert contents(folder) == before


TOUCHES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.chmod"}


def killed_at(touch: int, work: Callable[[], None]) -> bool:
    """Whether a process that does the work was killed, at its touch of the system of that number."""
    child = os.fork()
    if not child:
        seen = 0

        def count(event: str, given: tuple[Any, ...]) -> None:
            nonlocal seen
            if event not in TOUCHES and not (event == "open" and given[2] & os.O_CREAT):
                return
            seen += 1
            if seen == touch:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            work()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.parametrize("folder", ["repository"], indirect=True)
def test_a_landing_that_is_killed_anywhere_is_finished(folder: Path, tmp_path: Path) -> None:
    place, kept = tmp_path / "place", tmp_path / "kept"

    async def work(draft: Draft) -> None:
        change(draft.folder)
        draft._save(landing={"draft": "one", "before": draft._base, "after": await draft.tree()})

    drafted(folder, place, work)
    shutil.copytree(folder, kept / "folder", symlinks=True)
    shutil.copytree(place, kept / "place", symlinks=True)
    before, after = ignored(contents(folder)), contents(place / "one")

    async def land() -> None:
        with Drafts.open(place) as drafts:
            await drafts.finish_landing()

    touch, halves = 0, 0
    while killed_at(touch := touch + 1, lambda: asyncio.run(land())):
        found = ignored(contents(folder))
        with Drafts.open(place) as drafts:
            assert drafts.landing == "one" or (drafts.landed == "one" and found == after)
            halves += found not in (before, after)
        assert not killed_at(0, lambda: asyncio.run(land()))
        assert ignored(contents(folder)) == after
        for name in ("folder", "place"):
            original = {"folder": folder, "place": place}[name]
            shutil.rmtree(original)
            shutil.copytree(kept / name, original, symlinks=True)
    assert touch > 30 and halves >= len(CHANGED)


def test_a_half_finished_landing_leaves_what_someone_changed_meanwhile(folder: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        change(draft.folder)
        draft._save(landing={"draft": "one", "before": draft._base, "after": await draft.tree()})
        (folder / "run.sh").write_text("mine")
        with pytest.raises(DraftConflict, match=r"run\.sh"):
            await draft.drafts.finish_landing()

    drafted(folder, tmp_path / "place", work)
    assert (folder / "run.sh").read_text() == "mine"


# Repositories


def test_a_branch_leaves_index_and_work_tree(repository: Path, tmp_path: Path) -> None:
    (repository / "a.txt").write_text("one\ntwo\nnot committed\n")
    (repository / "staged.txt").write_text("x")
    plain_git(repository, "add", "staged.txt")
    status, before = plain_git(repository, "status", "--short"), contents(repository)

    async def work(draft: Draft) -> None:
        (draft.folder / "new.bin").write_bytes(bytes(range(256)))
        commit = await draft.branch("fix/it", "Fix it\n\nAll of it.")
        assert plain_git(repository, "rev-parse", "fix/it").strip() == commit
        with pytest.raises(DraftError, match="'fix/it' already"):
            await draft.branch("fix/it", "Again")
        with pytest.raises(DraftError, match="no name of a branch"):
            await draft.drafts.check_branch("a b")
        (draft.folder / "a.txt").write_text("one\ntwo\nNot committed\n")
        with pytest.raises(DraftError, match="not committed yet"):
            await draft.branch("other", "No")

    drafted(repository, tmp_path / "place", work)
    assert (plain_git(repository, "status", "--short"), contents(repository)) == (status, before)
    assert plain_git(repository, "log", "--format=%s", "fix/it").split("\n")[:3] == ["Fix it", "Second", "First"]
    assert plain_git(repository, "diff", "--stat", "main", "fix/it").split()[0] == "new.bin"
    assert not list((repository / ".git").glob("m1agent*"))


def test_the_first_commit_may_be_a_branch(tmp_path: Path) -> None:
    root = tmp_path / "new"
    root.mkdir()
    plain_git(root, "init", "-q", "-b", "main")
    plain_git(root, "config", "user.name", "Ada")
    plain_git(root, "config", "user.email", "ada@example.com")

    async def work(draft: Draft) -> None:
        (draft.folder / "a.txt").write_text("a\n")
        await draft.branch("begin", "Begin")

    drafted(root, tmp_path / "place", work)
    assert plain_git(root, "show", "begin:a.txt") == "a\n"


def test_a_plain_folder_has_no_branches(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()

    async def work(draft: Draft) -> None:
        with pytest.raises(DraftError, match="not the top folder of a git repository"):
            await draft.branch("x", "X")

    drafted(tmp_path / "plain", tmp_path / "place", work)


def test_what_git_was_told_by_force_is_there(repository: Path, tmp_path: Path) -> None:
    (repository / ".gitignore").write_text("*.gen\n")
    (repository / "kept.gen").write_text("x")
    (repository / "not.gen").write_text("x")
    plain_git(repository, "add", "-f", "kept.gen")
    (repository / "a.txt").unlink()

    async def work(draft: Draft) -> None:
        assert sorted(os.listdir(draft.folder)) == [".gitignore", "kept.gen"]
        (draft.folder / "kept.gen").write_text("y")
        assert await draft.land() == ("kept.gen",)

    drafted(repository, tmp_path / "place", work)


def test_a_repository_runs_nothing_unless_it_is_trusted(repository: Path, tmp_path: Path) -> None:
    hit = tmp_path / "hit"
    for name in ("post-checkout", "post-index-change", "reference-transaction", "pre-commit"):
        (repository / ".git" / "hooks").mkdir(exist_ok=True)
        (repository / ".git" / "hooks" / name).write_text(f"#!/bin/sh\ntouch {hit}\n")
        (repository / ".git" / "hooks" / name).chmod(0o755)
    plain_git(repository, "config", "filter.x.clean", f"touch {hit}; cat")
    plain_git(repository, "config", "core.fsmonitor", f"touch {hit}; true")
    (repository / ".gitattributes").write_text("* filter=x\n")

    async def work(draft: Draft) -> None:
        (draft.folder / "b.txt").write_text("b\n")
        await draft.branch("b", "B")
        await draft.land()

    drafted(repository, tmp_path / "place", work)
    assert not hit.exists()
    plain_git(repository, "config", "nobody.knows", "./run-me")
    with pytest.raises(ToolError, match=r"may run programs \(nobody.knows\)"):
        drafted(repository, tmp_path / "refused", work)


def test_repositories_inside_and_odd_things_are_told(repository: Path, tmp_path: Path) -> None:
    (repository / "inner").mkdir()
    plain_git(repository / "inner", "init", "-q")
    (repository / "inner" / "x").write_text("x")
    os.mkfifo(repository / "pipe")

    async def work(draft: Draft) -> tuple[str, ...]:
        assert not (draft.folder / "inner").exists()
        return draft.drafts.left_out

    assert drafted(repository, tmp_path / "place", work) == ("inner/",)


def test_too_much_is_refused(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "MOST_BYTES", 5)
    with pytest.raises(DraftError, match=r"\.gitignore"):
        drafted(repository, tmp_path / "place", lambda draft: draft.tree())


# Places


def test_one_program_at_a_time(repository: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        with pytest.raises(DraftError, match="another program"):
            Drafts.open(draft.drafts.place)

    drafted(repository, tmp_path / "place", work, note={"task": "x"})
    with Drafts.open(tmp_path / "place") as drafts:
        assert (drafts.note, drafts.names) == ({"task": "x"}, ("one",))
        drafts.keep({"task": "y"})
    assert Drafts.open(tmp_path / "place").note == {"task": "y"}


@pytest.mark.parametrize(
    ("folder", "place", "match"), [("none", "place", "no folder"), (".", "inside", "outside of it")]
)
def test_places_that_cannot_be(tmp_path: Path, folder: str, place: str, match: str) -> None:
    with pytest.raises(DraftError, match=match):
        run(lambda: Drafts.begin(tmp_path / folder, tmp_path / place))


def test_copies_are_for_their_user_alone(repository: Path, tmp_path: Path) -> None:
    """A file that only its owner may read is readable in a copy, so the copies lie where nobody else gets."""
    drafted(repository, tmp_path / "place", lambda draft: draft.tree())
    runs = Runs(repository, "test", state=tmp_path / "state")
    with run(runs.begin) as drafts:
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "place", drafts.place)} == {0o700}


@pytest.mark.parametrize("written", ["{", "[]", '{"format": 0}'])
def test_what_cannot_be_opened_is_told_and_let_go(repository: Path, tmp_path: Path, written: str) -> None:
    place = tmp_path / "place"
    drafted(repository, place, lambda draft: draft.tree())
    kept = (place / "drafts.json").read_text()
    (place / "drafts.json").write_text(written)
    with pytest.raises(DraftError, match=r"cannot be read|another version") as caught:
        Drafts.open(place)
    assert str(place) in str(caught.value)
    (place / "drafts.json").write_text(kept)
    with Drafts.open(place) as drafts:
        assert drafts.names == ("one",)


def test_a_folder_that_is_gone_is_named(repository: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        (draft.folder / "new").write_text("x")
        shutil.rmtree(repository)
        with pytest.raises(DraftError, match="repository is gone"):
            await draft.land()
        shutil.rmtree(draft.folder)
        with pytest.raises(DraftError, match="one is gone"):
            await draft.tree()

    drafted(repository, tmp_path / "place", work)


def test_names_stay_in_their_place(repository: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        for name in ("../x", "", "A", "a/b", "repository.x"):
            with pytest.raises(DraftError, match="name of a draft"):
                await draft.drafts.copy(name)

    drafted(repository, tmp_path / "place", work)


def test_a_copy_is_there_in_the_next_program(repository: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        (draft.folder / "a.txt").write_text("mine\n")

    drafted(repository, tmp_path / "place", work)
    (tmp_path / "place" / "one.index.lock").touch()  # As a git that was killed leaves it.
    (repository / "later.txt").write_text("x")

    async def again() -> None:
        with Drafts.open(tmp_path / "place") as drafts:
            one, two = await drafts.copy("one"), await drafts.copy("two")
            assert (await one.changed(), await two.changed()) == (("a.txt",), ())
            assert not (two.folder / "later.txt").exists(), "all drafts are of one state"

    run(again)


def test_runs_are_found_by_their_folder(repository: Path, tmp_path: Path) -> None:
    async def work() -> None:
        runs = Runs(repository, "fixing", state=tmp_path / "state")
        with pytest.raises(DraftError, match="no run"):
            runs.resume()
        with await runs.begin({"text": "x"}) as drafts:
            first = drafts.place.name
        assert runs.kept == (first,)
        with runs.resume() as drafts:
            one = await drafts.copy("one")
            (one.folder / "a.txt").write_text("x\n")
            one._save(landing={"draft": "one", "before": one._base, "after": await one.tree()})
        with pytest.raises(DraftError, match=f"finish that first, by going on with run {first}"):
            await runs.begin()
        with runs.resume(first) as drafts:
            assert await drafts.finish_landing() == ("a.txt",)
            drafts.remove()
        assert runs.kept == () and not drafts.place.exists()

    run(work)


# Tests of a draft


def test_a_suite_runs_on_a_copy_that_keeps_what_is_ignored(folder: Path, tmp_path: Path) -> None:
    command = "mkdir -p build; echo x >> build/count; cat build/count; echo y > pkg/a.py; touch new; rm run.sh"

    async def work(draft: Draft) -> None:
        before = contents(draft.folder)
        suite = Suite(command)
        first, second = await suite.run(draft), await suite.run(draft)
        assert first.passed and (first.output, second.output) == ("x\n", "x\nx\n")
        assert contents(draft.folder) == before
        (draft.folder / "pkg" / "b.py").write_text("print('new')\n")
        assert (await Suite("cat pkg/b.py; ls new").run(draft)).output.startswith("print('new')\n")

    drafted(folder, tmp_path / "place", work)


def test_how_suites_end(repository: Path, tmp_path: Path) -> None:
    async def work(draft: Draft) -> None:
        failed = await Suite("python -c 'print(1); raise SystemExit(3)'").run(draft)
        assert (failed.passed, failed.told, failed.line) == (False, "The tests failed.\n1", "FAILED: 1")
        hung = await Suite("echo begun; sleep 60", Bounds(seconds=0.5)).run(draft)
        assert hung.told == "The tests were stopped: they were not over after 0.5 s.\nbegun"
        assert "not over after 0.5 s" in hung.line
        with pytest.raises(OSError, match="no-such-program"):
            await Suite("no-such-program").run(draft)
        secret = await Suite(f"cat {repository}/a.txt").run(draft)
        assert not secret.passed, "the folder itself is not there"
        both = await asyncio.gather(Suite("sleep 0.2; ls").run(draft), Suite("ls").run(draft))
        assert [one.output for one in both] == ["a.txt\n", "a.txt\n"]

    drafted(repository, tmp_path / "place", work)
    with pytest.raises(ValueError, match="tests' command"):
        Suite("")
