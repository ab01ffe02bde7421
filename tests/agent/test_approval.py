"""Who may call what: rules, the tool's own wish, a human asked here, and one who answers later in another process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from m1agent.agent import Agent
from m1agent.approval import Approval, ApprovalRequest, Denied, Rule
from m1agent.cancel import Cancel
from m1agent.conversation import NOT_RUN, Conversation
from m1agent.delegation import handoff
from m1agent.events import ApprovalNeeded, Event, ToolFinished, ToolStarted
from m1agent.guards import Block
from m1agent.limits import Limits
from m1agent.mcp.config import StdioServer
from m1agent.messages import AssistantMessage, ToolCall, ToolMessage
from m1agent.models.scripted import ScriptedModel
from m1agent.result import RunResult
from m1agent.store import ConversationStore
from m1agent.tools import Hints, Tool, tool

UNANSWERED = "This call was not allowed. Nobody answered the question whether it may run."


@tool
def read(path: str) -> str:
    """Read a file."""
    return f"read {path}"


@tool(approval=True)
def remove(path: str, force: bool = False) -> str:
    """Remove a file."""
    return f"removed {path}"


@tool(approval=lambda arguments: arguments["amount"] > 10)
def pay(amount: int) -> str:
    """Pay."""
    return f"paid {amount}"


@tool(hints=Hints(destructive=True))
def wipe() -> str:
    """Wipe."""
    return "wiped"


def calls(*pairs: tuple[str, dict[str, Any]]) -> AssistantMessage:
    return AssistantMessage(calls=tuple(ToolCall(f"call_{i}", name, args) for i, (name, args) in enumerate(pairs, 1)))


def agent(*script: Any, tools: Any = (read, remove, pay, wipe), **options: Any) -> Agent[None, str]:
    return Agent(ScriptedModel(script), tools=tools, **options)


def told(result: RunResult[Any]) -> list[str]:
    return [record.result.content for record in result.calls]


def decided(made: Tool, arguments: dict[str, Any], *rules: Rule) -> Any:
    return Approval(rules).decide(made, ToolCall("1", made.name, arguments))


def test_a_tool_says_itself_whether_it_must_be_asked_about() -> None:
    assert decided(read, {"path": "a"}) == "allow"
    assert decided(remove, {"path": "a"}) == "ask"
    assert decided(pay, {"amount": 10}) == "allow" and decided(pay, {"amount": 11}) == "ask"
    assert decided(wipe, {}) == "ask"
    assert decided(wipe.changed(approval=False), {}) == "allow"


def test_the_first_rule_that_fits_decides() -> None:
    rules = (
        Rule("re*", "deny", {"path": "/etc/*"}, reason="Not the system's files."),
        Rule("remove", "allow", {"path": "/tmp/*"}),
        Rule("w?pe", "deny"),
    )
    assert decided(read, {"path": "/etc/passwd"}, *rules) == Denied("Not the system's files.")
    assert decided(remove, {"path": "/tmp/x"}, *rules) == "allow"
    assert decided(remove, {"path": "/home/x"}, *rules) == "ask"
    assert decided(wipe, {}, *rules) == Denied()


def test_an_argument_left_out_counts_with_its_default() -> None:
    gentle = Rule("remove", "allow", {"force": "false"})
    assert decided(remove, {"path": "a"}, gentle) == "allow"
    assert decided(remove, {"path": "a", "force": True}, gentle) == "ask"


def test_arguments_that_are_no_text_are_compared_as_json() -> None:
    assert decided(pay, {"amount": 5}, Rule("pay", "deny", {"amount": "5"})) == Denied()


def test_a_decision_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Rule\.decision must be 'allow', 'ask' or 'deny', not 'maybe'"):
        Rule("*", "maybe")  # type: ignore[arg-type]


def test_a_denied_call_is_told_why_and_counts_as_no_call() -> None:
    approval = Approval([Rule("read", "deny", reason="Ask me instead.")])
    result = agent(calls(("read", {"path": "a"}), ("pay", {"amount": 1})), "ok", approval=approval).run_sync("Go.")
    assert told(result) == ["This call was not allowed. Ask me instead.", "paid 1"]
    assert result.calls[0].result.is_error and result.stop == "done"


def test_a_test_of_approval_that_fails_lets_nothing_run_and_disturbs_nobody() -> None:
    @tool(approval=lambda arguments: arguments["missing"])
    def odd() -> str:
        """Odd."""
        raise AssertionError("ran")

    result = agent(calls(("odd", {}), ("read", {"path": "a"})), "ok", tools=[odd, read]).run_sync("Go.")
    assert "Whether odd may run could not be found out: KeyError" in told(result)[0] and told(result)[1] == "read a"


# Asked here


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_one_call_at_a_time_is_asked_about_while_others_run(kind: str) -> None:
    ran, asked = threading.Event(), list[str]()
    asking = threading.Lock()

    @tool
    def work() -> str:
        """Work."""
        ran.set()
        return "worked"

    def ask(request: ApprovalRequest) -> bool | Denied:
        assert asking.acquire(blocking=False) and ran.wait(30)  # A sync question blocks nobody.
        asked.append(request.call.arguments["path"])
        asking.release()
        return request.call.arguments["path"] != "b" or Denied("Not b.")

    async def ask_later(request: ApprovalRequest) -> bool | Denied:
        return await asyncio.to_thread(ask, request)

    script = calls(*[("remove", {"path": path}) for path in "abc"], ("work", {}))
    asking_agent = agent(script, "ok", tools=[remove, work], approval=ask if kind == "sync" else ask_later)
    result = asking_agent.run_sync("Go.")
    assert told(result) == ["removed a", "This call was not allowed. Not b.", "removed c", "worked"]
    assert sorted(asked) == ["a", "b", "c"] and result.pending == ()


def test_a_call_is_told_to_start_when_it_does() -> None:
    async def collect() -> list[Event]:
        async def ask(request: ApprovalRequest) -> bool:
            return request.call.id == "call_1"

        both = calls(("remove", {"path": "a"}), ("remove", {"path": "b"}))
        return [event async for event in agent(both, "ok", approval=ask).stream("Go.")]

    events = asyncio.run(collect())
    assert [event.call.id for event in events if isinstance(event, ToolStarted)] == ["call_1"]
    assert sorted(event.call.id for event in events if isinstance(event, ToolFinished)) == ["call_1", "call_2"]


@pytest.mark.parametrize("answer", [None, "yes", 1, RuntimeError("no terminal")])
def test_what_is_no_answer_lets_nothing_run(answer: Any) -> None:
    def ask(request: ApprovalRequest) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    result = agent(calls(("remove", {"path": "a"}), ("read", {"path": "b"})), "ok", approval=ask).run_sync("Go.")
    assert result.calls[0].result.is_error and "removed" not in told(result)[0] and told(result)[1] == "read b"
    assert ("no terminal" if isinstance(answer, Exception) else "True, False or Denied") in told(result)[0]


def test_cancelling_while_a_human_is_asked() -> None:
    cancel, never = Cancel(), threading.Event()

    def ask(request: ApprovalRequest) -> bool:
        cancel.cancel()
        never.wait(30)
        return True

    script = calls(("remove", {"path": "a"}), ("remove", {"path": "b"}))
    result = agent(script, approval=ask).run_sync("Go.", cancel=cancel)
    never.set()
    assert result.stop == "cancelled" and result.pending == ()
    assert told(result) == ["This call was stopped before it finished."] * 2


def test_a_denied_call_leaves_the_allowed_number_of_calls_as_it_was() -> None:
    script = [calls(("remove", {"path": "a"})), calls(("remove", {"path": "b"})), "ok"]
    asking = agent(*script, approval=lambda request: request.call.arguments["path"] == "b", limits=Limits(tool_calls=1))
    assert told(asking.run_sync("Go.")) == ["This call was not allowed.", "removed b"]


def test_a_humans_no_is_no_failure_of_the_tool() -> None:
    frail = remove.changed(retries=1)
    script = [calls(("remove", {"path": "a"})), calls(("remove", {"path": "b"})), "ok"]
    asking = agent(*script, tools=[frail], approval=lambda request: request.call.arguments["path"] == "b")
    assert told(asking.run_sync("Go.")) == ["This call was not allowed.", "removed b"]


# Answered later


def stopped(*pairs: tuple[str, dict[str, Any]], **options: Any) -> RunResult[str]:
    pairs = pairs or (("remove", {"path": "a"}), ("read", {"path": "b"}), ("remove", {"path": "c"}))
    result = agent(calls(*pairs)).run_sync("Go.", **options)
    assert result.stop == "approval"
    return result


def test_without_anybody_to_ask_the_run_ends_and_keeps_what_its_siblings_brought() -> None:
    async def collect() -> list[Event]:
        both = calls(("remove", {"path": "a"}), ("read", {"path": "b"}))
        return [event async for event in agent(both).stream("Go.")]

    events = asyncio.run(collect())
    needed = next(event for event in events if isinstance(event, ApprovalNeeded))
    assert [call.id for call in needed.calls] == ["call_1"]
    result = stopped()
    assert [call.id for call in result.pending] == ["call_1", "call_3"] and result.output is None
    assert [one and one.content for one in result.conversation.noted] == [None, "read b", None]
    assert told(result) == ["read b"] and isinstance(result.messages[-1], AssistantMessage)


def test_only_the_open_calls_run_and_the_run_goes_on_to_the_answer() -> None:
    first = stopped()
    answers = {"call_1": True, "call_3": Denied("Keep c.")}
    second = agent("Done.").run_sync(None, conversation=first.conversation, approvals=answers)
    assert second.output == "Done." and second.pending == () and second.conversation.noted == ()
    message = second.messages[2]
    assert isinstance(message, ToolMessage)
    assert [one.content for one in message.results] == ["removed a", "read b", "This call was not allowed. Keep c."]
    assert told(second) == ["removed a", "This call was not allowed. Keep c."]


RESUME = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from m1agent.agent import Agent
from m1agent.conversation import Conversation
from m1agent.models.scripted import ScriptedModel
from m1agent.tools import tool

@tool
def read(path: str) -> str:
    "Read a file."
    raise AssertionError("its result is known")

@tool(approval=True)
def remove(path: str, force: bool = False) -> str:
    "Remove a file."
    Path(path).unlink()
    return "gone"

talk = Conversation.from_json(json.loads(Path("talk.json").read_text()))
answers = {call.id: call.arguments["path"] == "a.txt" for call in talk.waiting}
result = Agent(ScriptedModel(["All done."]), tools=[read, remove]).run_sync(None, conversation=talk, approvals=answers)
print(json.dumps([result.output, [r.content for r in result.messages[2].results]]))
"""


def test_another_process_takes_the_answers_and_goes_on(tmp_path: Path) -> None:
    for name in ("a.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    first = stopped(("remove", {"path": "a.txt"}), ("read", {"path": "b"}), ("remove", {"path": "c.txt"}))
    (tmp_path / "talk.json").write_text(json.dumps(first.conversation.to_json()))
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", RESUME, root], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["All done.", ["gone", "read b", "This call was not allowed."]]
    assert not (tmp_path / "a.txt").exists() and (tmp_path / "c.txt").exists()


def test_calls_without_an_answer_are_told_so() -> None:
    first = stopped()
    second = agent("Hm.").run_sync(None, conversation=first.conversation, approvals={"call_3": True})
    assert told(second) == [UNANSWERED, "removed c"]


def test_a_new_prompt_without_answers_comes_after_the_calls() -> None:
    first = stopped()
    second = agent("Hm.").run_sync("Forget it.", conversation=first.conversation)
    assert told(second) == [UNANSWERED, UNANSWERED] and second.output == "Hm."
    assert [type(message).__name__ for message in second.messages] == [
        "UserMessage",
        "AssistantMessage",
        "ToolMessage",
        "UserMessage",
        "AssistantMessage",
    ]


def test_answers_to_calls_that_do_not_wait_are_refused_and_lose_nothing() -> None:
    first = stopped()
    with pytest.raises(ValueError, match=r"no call 'call_2' waits; waiting: call_1, call_3"):
        agent("Hm.").run_sync(None, conversation=first.conversation, approvals={"call_2": True})
    with pytest.raises(TypeError, match="an approval is True, False or Denied"):
        agent("Hm.").run_sync(None, conversation=first.conversation, approvals={"call_1": "yes"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="approvals are answers by call id"):
        agent("Hm.").run_sync(None, conversation=first.conversation, approvals=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no call 'call_1' waits; waiting: none"):
        agent("Hm.").run_sync("Hi", approvals={"call_1": True})
    assert len(first.conversation.waiting) == 2


def test_a_blocked_prompt_leaves_the_calls_waiting() -> None:
    first = stopped()
    guarded = agent("Hm.", input_guards=[lambda messages: Block("no")])
    assert guarded.run_sync("Bad.", conversation=first.conversation).stop == "blocked"
    assert [call.id for call in first.conversation.waiting] == ["call_1", "call_3"]
    assert [one and one.content for one in first.conversation.noted] == [None, "read b", None]


def test_approved_calls_are_limited_like_others() -> None:
    first = stopped(("remove", {"path": "a"}), ("remove", {"path": "c"}), limits=Limits(tool_calls=1))
    second = agent("Hm.").run_sync(
        None,
        conversation=first.conversation,
        approvals={"call_1": True, "call_2": True},
        limits=Limits(tool_calls=1),
    )
    assert told(second)[0] == "removed a" and "used up" in told(second)[1]


def test_a_cancelled_run_answers_what_waited_in_it() -> None:
    cancel = Cancel()

    @tool
    async def hang() -> str:
        """Hang."""
        cancel.cancel()
        await asyncio.Event().wait()
        return "never"

    result = agent(calls(("remove", {"path": "a"}), ("hang", {})), tools=[remove, hang]).run_sync("Go.", cancel=cancel)
    assert result.stop == "cancelled" and result.pending == () and result.conversation.waiting == ()
    message = result.messages[-1]
    assert isinstance(message, ToolMessage) and message.results[0].content == NOT_RUN


def test_a_run_cancelled_before_it_began_leaves_the_calls_waiting() -> None:
    first, cancel = stopped(), Cancel()
    cancel.cancel()
    guarded = agent("Hm.", input_guards=[lambda messages: None])
    result = guarded.run_sync("Go on.", conversation=first.conversation, cancel=cancel)
    assert result.stop == "cancelled" and len(result.pending) == 2


def test_a_pending_approval_survives_in_a_store(tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "talks.db") as store:
        talk = store.create("one")
        stopped(conversation=talk)
    with ConversationStore(tmp_path / "talks.db") as store:
        talk = store.open("one")
        assert [call.id for call in talk.waiting] == ["call_1", "call_3"]
        assert [one and one.content for one in talk.noted] == [None, "read b", None]
        answers = {"call_1": True, "call_3": False}
        result = agent("Done.").run_sync(None, conversation=talk, approvals=answers)
        assert result.output == "Done." and told(result) == ["removed a", "This call was not allowed."]
    with ConversationStore(tmp_path / "talks.db") as store:
        assert store.open("one").messages == result.messages and not store.open("one").waiting


def test_the_store_knows_who_waits_before_the_siblings_are_done(tmp_path: Path) -> None:
    waiting: list[list[str]] = []

    @tool
    def peek() -> str:
        """Look into the store from beside."""
        with ConversationStore(tmp_path / "talks.db") as beside:
            waiting.append([call.id for call in beside.open("one").waiting])
        return "seen"

    with ConversationStore(tmp_path / "talks.db") as store:
        script = calls(("peek", {}), ("remove", {"path": "a"}))
        agent(script, tools=[peek, remove]).run_sync("Go.", conversation=store.create("one"))
    assert waiting == [["call_2"]]


def test_a_fork_waits_for_answers_of_its_own() -> None:
    first = stopped()
    twin = first.conversation.fork()
    agent("Yes.").run_sync(None, conversation=twin, approvals={"call_1": True})
    assert len(first.conversation.waiting) == 2 and twin.waiting == ()
    again = Conversation.from_json(first.conversation.to_json())
    assert again.waiting == first.conversation.waiting and again.noted == first.conversation.noted


def stray(**options: Any) -> Tool:
    schema = {"type": "object", "properties": {"place": {"type": "string"}}, **options}
    return Tool.from_schema("stray", "Stray.", schema, lambda **given: "strayed")


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Rule("remov", "deny"), r"""Rule\(tools='remov', .* fits no tool\. Did you mean "remove"\?"""),
        (
            Rule("remove", "deny", {"paht": "/etc/*"}),
            r"""argument 'paht', .* Did you mean "path"\? Arguments: force, path""",
        ),
        (Rule("stray", "deny", {"plac": "x"}), "argument 'plac', which stray does not have"),
    ],
)
def test_a_misspelt_rule_is_refused_before_anything_runs(rule: Rule, says: str) -> None:
    tools = [read, remove, stray(additionalProperties=False)]
    model = ScriptedModel([])
    with pytest.raises(ValueError, match=says):
        Agent(model, tools=tools, approval=Approval([rule])).run_sync("Go.")
    assert not model.requests


@pytest.mark.parametrize(
    "rule", [Rule("remov*", "deny", {"paht": "x"}), Rule("stray", "deny", {"plac": "x"}), Rule("xtool?", "ask")]
)
def test_rules_that_may_come_to_fit_are_not_refused(rule: Rule) -> None:
    assert agent("ok", tools=[read, stray()], approval=Approval([rule])).run_sync("Go.").output == "ok"


def test_rules_may_name_the_tools_of_agents_that_the_conversation_may_go_to() -> None:
    shared = Approval([Rule("read", "deny"), Rule("remove", "deny", {"path": "x"})])
    other = Agent(ScriptedModel(["Theirs."]), tools=[remove], name="other", approval=shared)
    made = agent(calls(("transfer_to_other", {})), tools=[read, handoff(other)], approval=shared)
    assert made.run_sync("Go.").output == "Theirs."
    other = Agent(ScriptedModel([]), name="other", approval=Approval([Rule("reed", "deny")]))
    with pytest.raises(ValueError, match='Did you mean "read"'):
        agent(tools=[read, handoff(other)]).run_sync("Go.")


def test_rules_for_servers_that_cannot_be_reached_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    gone = StdioServer("gone", "no-such-program-anywhere")
    made = agent("ok", mcp=[gone], approval=Approval([Rule("gone__drop", "deny")]))
    assert made.run_sync("Go.").output == "ok"
    assert "Rule(tools='gone__drop'" in caplog.text and "fits no tool now: server 'gone'" in caplog.text
    with pytest.raises(ValueError, match="fits no tool"):
        agent("ok", mcp=[gone], approval=Approval([Rule("gon__drop", "deny")])).run_sync("Go.")
