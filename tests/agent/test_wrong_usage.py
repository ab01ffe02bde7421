"""What a developer does wrong on the first day is told at once, naming the field and the remedy."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Annotated, Any, NewType, Protocol, TypedDict

import pytest
from pydantic import BaseModel, field_validator

from m1agent.agent import Agent
from m1agent.approval import Approval, Rule
from m1agent.cli import EXIT_USAGE, main
from m1agent.conversation import Conversation
from m1agent.errors import ConversationInUse, InvalidArguments, ModelError, RunStopped, ToolDefinitionError
from m1agent.hooks import Hooks
from m1agent.messages import AssistantMessage, ToolCall, UserMessage
from m1agent.models.scripted import ScriptedModel
from m1agent.tools import Tool, tool
from m1agent.toolset import Toolset


def answering(*replies: Any, **options: Any) -> Agent[Any, Any]:
    return Agent(ScriptedModel(replies), **options)


# Options of an agent and of a run


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limits": 5}, "Agent: limits must be a Limits, not a int"),
        ({"settings": {"temperature": 0}}, "Agent: settings must be a Settings, not a dict"),
        ({"hooks": print}, "Agent: hooks must be a Hooks, not a builtin_function_or_method"),
        ({"compaction": 100}, "Agent: compaction must be a Compaction, not a int"),
        ({"results": 100}, "Agent: results must be a ResultBudget, not a int"),
        ({"input_guards": print}, "Agent: input_guards must be a list, not a builtin_function_or_method"),
        ({"output_guards": (print for _ in "a")}, "Agent: output_guards must be a list, not a generator"),
        ({"observers": None}, "Agent: observers must be a list, not a NoneType"),
        ({"roots": "."}, "Agent: roots must be a list, not a str"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused_when_the_agent_is_made(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError) as raised:
        answering(**options)
    assert str(raised.value) == says


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"conversation": "4f1c"}, "run: conversation must be a Conversation, not a str"),
        ({"cancel": True}, "run: cancel must be a Cancel, not a bool"),
        ({"limits": 3}, "run: limits must be a Limits, not a int"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused_before_the_run_begins(options: dict[str, Any], says: str) -> None:
    agent = answering("Hello.")
    with pytest.raises(TypeError) as raised:
        agent.run_sync("Hi.", **options)
    assert str(raised.value) == says
    assert agent.run_sync("Hi.", conversation=None, limits=None, cancel=None).output == "Hello."


def test_none_stands_for_what_is_left_out() -> None:
    options: dict[str, Any] = dict.fromkeys(("limits", "settings", "hooks", "compaction", "results", "approval"))
    assert answering("Hello.", **options, output=None).run_sync("Hi.").output == "Hello."


class Clock(Protocol):
    def now(self) -> int: ...


class Row(TypedDict):
    a: int


Number = NewType("Number", int)


@pytest.mark.parametrize("kind", [Clock, Row, Any, Number, Annotated[int, "seconds"], Callable[[], int]])
def test_types_that_no_object_can_be_held_against_are_left_to_the_type_checker(kind: Any) -> None:
    deps: Any = len if kind == Callable[[], int] else 5
    assert answering("ok", deps_type=kind).run_sync("Hi.", deps=deps).output == "ok"


def test_an_annotated_type_of_deps_is_checked() -> None:
    with pytest.raises(TypeError, match="deps must be a int, not a str"):
        answering("ok", deps_type=Annotated[int, "seconds"]).run_sync("Hi.", deps="5")


def test_a_conversation_is_made_of_messages() -> None:
    for wrong in ("hi", ["hi"], [UserMessage("hi"), {"role": "user"}]):
        with pytest.raises(TypeError, match=r"made of messages such as UserMessage\('Hi'\), not "):
            Conversation(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("rules", [Rule("*", "deny"), ["*"], 5])
def test_rules_are_a_list_of_rules(rules: Any) -> None:
    with pytest.raises(TypeError, match="Approval takes a list of rules"):
        Approval(rules)


def test_a_pattern_of_an_argument_is_text() -> None:
    with pytest.raises(ValueError, match="the pattern of 'amount' must be text such as '5\\*', not 5"):
        Rule("pay", "deny", {"amount": 5})  # type: ignore[dict-item]


# Tools


@pytest.mark.parametrize("name", ["", "has space", 'x"', "x\n", "</tool_calls>", "x" * 129, 5])
def test_a_name_that_no_call_can_carry_is_refused(name: Any) -> None:
    with pytest.raises(ToolDefinitionError, match="cannot be a tool's name"):
        tool(name=name)(lambda: 1)


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(ToolDefinitionError, match="give another with name="):
        Agent(ScriptedModel([]), tools=[lambda: 1])
    assert tool(name="größe")(lambda: 1).name == "größe"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("timeout", "5", "f: timeout must be above 0 seconds, not '5'"),
        ("retries", 1.5, "f: retries must be at least 1, and a whole number, not 1.5"),
        ("hints", {"destructive": True}, 'f: hints must be Hints(...), not {"destructive": true}'),
        ("approval", "no", 'f: approval must be True, False or a function of the arguments, not "no"'),
        ("available", False, "f: available must be a function, such as lambda: False, not false"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_where_the_tool_is_defined(field: str, value: Any, says: str) -> None:
    with pytest.raises(ToolDefinitionError) as raised:
        tool(name="f", **{field: value})(lambda: 1)
    assert str(raised.value) == says


def test_a_handler_is_a_function() -> None:
    with pytest.raises(ToolDefinitionError, match="look: its handler must be a function, not 5"):
        Tool.from_schema("look", "Look.", {"type": "object"}, 5)  # type: ignore[arg-type]


def test_a_toolset_says_that_a_function_is_no_tool() -> None:
    def look() -> None: ...

    with pytest.raises(ToolDefinitionError, match=r"^look is no tool; a Toolset holds what @tool makes"):
        Toolset("mine", [look])  # type: ignore[list-item]


class Checked(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def known(cls, n: int) -> int:
        return {1: 1}[n]


def test_a_validator_that_fails_is_a_problem_of_the_arguments() -> None:
    @tool
    def look(at: Checked) -> str:
        return f"saw {at.n}"

    calls = AssistantMessage(calls=(ToolCall("1", "look", {"at": {"n": 2}}), ToolCall("2", "look", {"at": {"n": 1}})))
    result = answering(calls, "Done.", tools=[look]).run_sync("Look.")
    assert [record.result.content for record in result.calls] == [
        "Invalid arguments for look:\nKeyError: 2",
        "saw 1",
    ]


def test_a_validator_of_the_output_that_fails_asks_again_and_loses_no_run() -> None:
    again = answering('{"n": 2}', '{"n": 1}', output=Checked).run_sync("Go.")
    assert again.output == Checked(n=1) and "did not fit: KeyError: 2" in again.conversation.messages[2].text  # type: ignore[union-attr]
    hopeless = answering(*['{"n": 2}'] * 3, output=Checked).run_sync("Go.")
    assert hopeless.stop == "error" and isinstance(hopeless.error, ModelError)


def test_text_as_the_type_of_the_answer_is_text_as_it_is() -> None:
    agent = answering("Hello.", output=str)
    assert agent.output_schema is None and agent.run_sync("Hi.").output == "Hello."


# Results and errors


def test_the_text_of_a_result_does_not_grow_with_its_history() -> None:
    history = [UserMessage(f"secret {n}") for n in range(2000)]
    result = answering("Hello.").run_sync("Hi.", conversation=Conversation(history))
    assert len(result.messages) == 2002
    assert "secret" not in repr(result) and len(repr(result)) < 500


def test_what_run_sync_raises_comes_without_another_error() -> None:
    with pytest.raises(TypeError) as raised:
        answering("Hello.").run_sync(5)  # type: ignore[arg-type]
    assert raised.value.__context__ is None and raised.value.__cause__ is None


@pytest.mark.parametrize(
    "error",
    [InvalidArguments("look", ["at: missing."]), ConversationInUse("process 7"), RunStopped("steps", "too many")],
)
def test_errors_cross_processes(error: Exception) -> None:
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error) and str(twin) == str(error) and vars(twin) == vars(error)


def test_a_hook_that_is_no_function_is_told_as_the_result() -> None:
    hooks = Hooks(before_call=5)  # type: ignore[arg-type]
    call = AssistantMessage(calls=(ToolCall("1", "ping", {}),))
    result = asyncio.run(answering(call, "Done.", tools=[tool(name="ping")(lambda: 1)], hooks=hooks).run("Go."))
    assert result.calls[0].result.is_error and "not callable" in result.calls[0].result.content


# The command line


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_wrong_usage(question: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", question]) == EXIT_USAGE
    assert capsys.readouterr() == ("", "m1agent: the question is empty\n")


def test_tools_beside_an_agent_need_an_agent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mcp", "serve", "--with-tools"]) == EXIT_USAGE
    assert "--with-tools goes with --agent" in capsys.readouterr().err
