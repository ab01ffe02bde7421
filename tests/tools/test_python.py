"""`run_python`: what a model sees of the code it ran."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import pytest

from m1agent import Agent, Approval, Denied, ToolError, load_toolset
from m1agent.messages import AssistantMessage, ImagePart, ToolCall, ToolOutput
from m1agent.models.scripted import ScriptedModel
from m1tools.python import python
from m1tools.sandbox import Bounds, Isolation, isolation

TOOL = python()["run_python"]
PNG = b"\x89PNG\r\n\x1a\n"


def run(code: str, tool: object = TOOL) -> str:
    return anyio.run(TOOL.call if tool is TOOL else tool.call, {"code": code})  # type: ignore[attr-defined]


def output(code: str) -> ToolOutput:
    return anyio.run(TOOL.run, TOOL.validate({"code": code}))


def test_found_through_its_entry_point() -> None:
    assert [tool.name for tool in load_toolset("python")] == ["run_python"]


def test_what_is_printed_and_the_last_value() -> None:
    assert run("x = 20\nprint('x is', x)\nx * 2 + 2") == "x is 20\n42"


def test_a_text_is_shown_as_it_is_and_none_not_at_all() -> None:
    assert run("'a\\nb'") == "a\nb"
    assert run("None") == "Nothing was printed."


def test_an_error_shows_the_line_of_the_code_alone() -> None:
    told = run("def f():\n    return 1 / 0\n\nf()")
    assert 'File "<code>", line 2, in f' in told
    assert "return 1 / 0" in told and "ZeroDivisionError" in told
    assert "driver" not in told and told.endswith("Exit status 1.")


def test_code_that_does_not_parse() -> None:
    assert "SyntaxError" in run("def f(:")


@pytest.mark.parametrize(("code", "told"), [("3", "Exit status 3."), ("'bye'", "bye\nExit status 1."), ("", "")])
def test_exit(code: str, told: str) -> None:
    assert told in run(f"raise SystemExit({code})")


def test_classes_can_be_pickled_and_modules_ask_for_main() -> None:
    assert (
        run("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__, __name__)")
        == "A __main__"
    )


def test_packages_of_this_environment_are_there() -> None:
    assert run("import sympy\nsympy.Integer(6).is_prime") == "False"


def test_processes_of_its_own() -> None:
    assert run("import multiprocessing as m\nwith m.Pool(2) as p: print(p.map(abs, [-1, 2]))") == "[1, 2]"


def test_each_call_begins_in_an_empty_folder() -> None:
    assert run("import os\nopen('a.txt', 'w').write('hello')\nprint(os.listdir())") == "['a.txt']"
    assert run("import os\nprint(os.listdir())") == "[]"


def test_plots_come_back_as_images() -> None:
    made = output(
        "import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()\nplt.figure()\nplt.bar([1], [2])\nprint('ok')"
    )
    assert made.content.splitlines()[0] == "ok"
    assert "[image image/png, " in made.content
    assert len(made.parts) == 2
    assert all(isinstance(part, ImagePart) and part.data.startswith(PNG) for part in made.parts)


def test_forged_plots_are_left_out() -> None:
    for size in ("1 << 60", "100", "0"):
        forged = f"os.write(n, ({size}).to_bytes(8, 'big') + b'x' * 100)"
        loop = f"import os\nfor n in range(3, 20):\n    try: {forged}\n    except OSError: pass"
        assert output(loop).parts == ()


def test_a_folder_to_work_in_is_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("1 2 3")
    (tmp_path / "helper.py").write_text("def double(x): return 2 * x\n")
    tool = python(tmp_path)["run_python"]
    assert (
        run("from helper import double\nprint(double(sum(map(int, open('numbers.txt').read().split()))))", tool) == "12"
    )
    assert "Exit status 1." in run("open('new.txt', 'w')", tool)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["helper.py", "numbers.txt"]


def test_a_root_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        python("/no/such/folder")


def test_unicode_both_ways() -> None:
    assert run("print('naïve 雪 🙂')\nprint('\\ud800'.encode('utf-8', 'replace'))") == "naïve 雪 🙂\nb'?'"


def test_a_yes_is_needed_where_the_machine_cannot_isolate() -> None:
    bare = python(isolated_by=Isolation())["run_python"]
    whole = python(isolated_by=Isolation("user", landlock=True, counted=True))["run_python"]
    assert bare.needs_approval({"code": "1"}) and not whole.needs_approval({"code": "1"})
    assert not python(isolated_by=Isolation(), approval=False)["run_python"].needs_approval({"code": "1"})
    assert run("1", bare).endswith("Not isolated on this machine: files, network, processes.")


def test_without_a_yes_nothing_runs(tmp_path: Path) -> None:
    call = ToolCall("1", "run_python", {"code": f"open({str(tmp_path / 'ran')!r}, 'w')"})
    tools = python(isolated_by=Isolation())
    model = ScriptedModel([AssistantMessage(calls=(call,)), "All right."])
    agent = Agent(model, tools=[tools], approval=Approval(ask=lambda request: Denied("Not here.")))
    assert "Not here." in agent.run_sync("Run it.").calls[0].result.content
    assert not (tmp_path / "ran").exists()


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Bounds\.seconds must be above 0"):
        Bounds(seconds=0)


def test_the_time_is_told_with_what_there_was() -> None:
    tool = python(bounds=Bounds(seconds=1))["run_python"]
    with pytest.raises(ToolError, match=r"stopped after 1 s[^\n]*\nbegun"):
        run("print('begun')\nwhile True: pass", tool)


@pytest.mark.skipif(sys.platform != "linux" or not isolation().namespaces, reason="needs namespaces")
def test_this_machine_isolates_networks_and_processes() -> None:
    assert isolation().complete == isolation().landlock
