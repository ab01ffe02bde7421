"""Server configurations and tool names."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1agent.errors import McpError
from m1agent.mcp.config import HttpServer, OAuth, StdioServer, as_servers, load_servers
from m1agent.mcp.naming import decode, encode, tool_name

ANY: Callable[[object], Any] = functools.partial(cast, "Any")
USUAL: dict[str, Any] = {
    "mcpServers": {
        "git": {"command": "git-mcp", "args": ["--repo", "${REPO:-.}"], "env": {"TOKEN": "${SECRET}"}, "cwd": "/"},
        "web": {"url": "https://u:pw1234@example.com/mcp?key=k3y9", "headers": {"Authorization": "Bearer ${SECRET}"}},
        "off": {"command": "x", "disabled": True},
    }
}


def test_the_usual_form_from_dict_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    (tmp_path / "mcp.json").write_text(json.dumps(USUAL))
    git, web = load_servers(USUAL)
    assert load_servers(tmp_path / "mcp.json") == (git, web)
    assert git == StdioServer("git", "git-mcp", ("--repo", "."), {"TOKEN": "s3cret"}, "/")
    assert isinstance(web, HttpServer) and web.headers == {"Authorization": "Bearer s3cret"}
    assert {"s3cret", "u:pw1234", "k3y9"} <= set(web.secrets)
    assert "s3cret" not in repr((git, web)) and "pw1234" not in repr(web)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, 'no "mcpServers" object'),
        ({"mcpServers": {"a": 3}}, "server 'a': expected an object"),
        ({"mcpServers": {"a": {}}}, """server 'a': needs "command" .* or "url\""""),
        ({"mcpServers": {"a": {"command": ["x"]}}}, "server 'a', command: expected text"),
        ({"mcpServers": {"a": {"command": "x", "env": {"K": 1}}}}, "server 'a', env.K: expected text"),
        ({"mcpServers": {"a": {"command": "${NOT_SET_ANYWHERE}"}}}, "NOT_SET_ANYWHERE is not set"),
        ({"mcpServers": {"a": {"url": "ftp://x"}}}, "url must begin with http"),
        ({"mcpServers": {"a": {"url": "http://"}}}, "server 'a': url must .* name a host"),
        ({"mcpServers": {"a": {"command": " "}}}, "server 'a', command: expected a program to start"),
        ({"mcpServers": {"a": {"command": "x", "url": "http://x"}}}, 'server \'a\': has both "command" and "url"'),
        ({"mcpServers": {"a": {"command": "x", "exclude_tool": ["*"]}}}, """server 'a': .* mean "exclude_tools"\\?"""),
        ({"mcpServers": {"a": {"command": "x", "timeout": 10**400}}}, "server 'a', timeout: the number is too large"),
        ({"mcpServers": {"a": {"command": "x", "args": "-m server"}}}, "server 'a', args: expected a list of texts"),
        ({"mcpServers": {"a": {"command": "x", "args": 5}}}, "server 'a', args: expected a list of texts"),
        ({"mcpServers": {"a": {"command": "x", "call_seconds": 0}}}, "must be above 0"),
        ({"mcpServers": {"a": {"command": "x", "timeout": 5, "call_seconds": 5}}}, "call_seconds and timeout mean the"),
        ({"mcpServers": {"a": {"command": "x", "timeout": "5"}}}, "server 'a', timeout: expected a number, got str"),
        ({"mcpServers": {"a": {"command": "x", "required": "yes"}}}, "server 'a', required: expected true or false"),
        ({"mcpServers": {"a": {"command": "x", "tools": "read_*"}}}, "server 'a', tools: expected a list of texts"),
        ({"mcpServers": {"a": {"url": "http://x/sse", "type": "sse"}}}, "'sse' was removed .* streamable HTTP address"),
        ({"mcpServers": {"a": {"url": "http://x", "transport": "websocket"}}}, "no transport is called 'websocket'"),
        ({"mcpServers": {"a": {"url": "http://x", "type": "stdio"}}}, 'a server of type "stdio" needs "command"'),
        ({"mcpServers": {"a": {"command": "x", "type": "http"}}}, 'a server of type "http" needs "url"'),
        ({"mcpServers": {"a": {"url": "http://x", "oauth": True}}}, "server 'a', oauth: expected an object, got bool"),
        (
            {"mcpServers": {"a": {"url": "http://x", "oauth": {"redirect_port": 70000}}}},
            "server 'a', oauth, redirect_port: expected a port",
        ),
        ({"mcpServers": {"a": {"url": "http://x", "oauth": {"redirect_port": 1.5}}}}, "redirect_port: .* whole number"),
        ({"mcpServers": {"a": {"url": "http://x", "oauth": {"scope": []}}}}, """a', oauth: .* mean "scopes"\\?"""),
    ],
)
def test_mistakes_are_named(document: dict[str, Any], text: str) -> None:
    with pytest.raises(McpError, match=text):
        load_servers(document)


def test_the_fields_of_other_clients() -> None:
    document: dict[str, Any] = {
        "mcpServers": {
            "a": {"command": "x", "type": "stdio", "timeout": 5, "tools": ["read_*", "write"], "required": True},
            "b": {"url": "http://x", "type": "streamable-http", "autoApprove": ["get_*"], "exclude_tools": ["*_all"]},
            "c": {"url": "http://x", "transport": "http", "oauth": {"scopes": ["read"], "redirect_port": 9000}},
        }
    }
    a, b, c = load_servers(document)
    assert a == StdioServer("a", "x", call_seconds=5.0, tools=("read_*", "write"), required=True)
    assert [a.uses(name) for name in ("read_file", "write", "delete")] == [True, True, False]
    assert b == HttpServer("b", "http://x", approve=("get_*",), exclude_tools=("*_all",))
    assert (b.approves("get_x"), b.approves("set_x"), b.uses("get_x"), b.uses("get_all")) == (True, False, True, False)
    assert c == HttpServer("c", "http://x", oauth=OAuth(scopes=("read",), redirect_port=9000))


def test_patterns_and_arguments_are_tuples() -> None:
    with pytest.raises(McpError, match="tools: expected a tuple of patterns"):
        StdioServer("a", "x", tools=cast("Any", "read_*"))
    with pytest.raises(McpError, match="server 'a', args: expected a tuple of texts"):
        StdioServer("a", "x", cast("Any", "-m server"))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: StdioServer(ANY(5), "x"), "an MCP server, name: expected text, not int"),
        (lambda: StdioServer("a", ANY(5)), "server 'a', command: expected text, not int"),
        (
            lambda: StdioServer("a", "x", ANY(["ok", 5])),
            "server 'a', args: expected a tuple of texts, not one with int",
        ),
        (lambda: StdioServer("a", "x", env=ANY({"A": 5})), "server 'a', env.A: expected text, not int"),
        (lambda: StdioServer("a", "x", env=ANY({5: "A"})), "server 'a', env: expected names that are text, not int"),
        (lambda: StdioServer("a", "x", env=ANY(["A"])), "server 'a', env: expected a dict of texts, not list"),
        (lambda: StdioServer("a", "x", cwd=ANY(5)), "server 'a', cwd: expected a path, not int"),
        (lambda: StdioServer("a", "x", log=ANY(True)), "server 'a', log: expected a path, not bool"),
        (lambda: StdioServer("a", "x", call_seconds=ANY("5")), "server 'a', call_seconds: expected a number, not str"),
        (lambda: StdioServer("a", "x", call_seconds=True), "server 'a', call_seconds: expected a number, not bool"),
        (lambda: StdioServer("a", "x", required=ANY("no")), "server 'a', required: expected True or False, not str"),
        (lambda: StdioServer("a", "x", approve=ANY(None)), "server 'a', approve: .* tuple of patterns, not NoneType"),
        (lambda: HttpServer("a", ANY(5)), "server 'a', url: expected text, not int"),
        (lambda: HttpServer("a", "http://x", ANY({"A": None})), "server 'a', headers.A: expected text, not NoneType"),
        (lambda: HttpServer("a", "http://x", oauth=ANY(True)), "server 'a', oauth: expected an OAuth, not bool"),
        (lambda: OAuth(scopes=ANY("read")), "oauth, scopes: expected a tuple of texts, not one text"),
        (lambda: OAuth(redirect_port=ANY(1.5)), "oauth, redirect_port: expected a whole number, not float"),
    ],
)
def test_fields_of_the_wrong_kind_are_named(make: Callable[[], object], text: str) -> None:
    with pytest.raises(McpError, match=f"^{text}"):
        make()


def test_a_name_that_is_there_twice_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text('{"mcpServers": {"a": {"command": "x"}, "a": {"command": "y"}}}')
    with pytest.raises(McpError, match=r'mcp\.json: "a" is there twice in one object; take one away'):
        load_servers(path)


@pytest.mark.parametrize("wrong", [5, None, {1}])
def test_what_names_no_servers(wrong: Any) -> None:
    with pytest.raises(McpError, match="expected a file, a dict, a server or a list of servers, got"):
        as_servers(wrong)


def test_files_as_editors_write_them(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"a": {"command": "x", "icon": "a.png"}}}), encoding="utf-8-sig")
    assert load_servers(path) == (StdioServer("a", "x"),)
    path.write_text("[" * 100_000)
    with pytest.raises(McpError, match=r"mcp\.json: no valid JSON \(it is nested too deeply\)"):
        load_servers(path)


def test_a_login_in_an_address_is_secret_in_every_form() -> None:
    server = HttpServer("a", "HTTPS://u:p%40ss-w0rd@x/mcp?key=a%2Fb%2Bc")
    assert {"p%40ss-w0rd", "p@ss-w0rd", "u:p@ss-w0rd", "dTpwQHNzLXcwcmQ=", "a%2Fb%2Bc", "a/b+c"} <= set(server.secrets)


def test_variables_in_arguments_and_paths_are_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"API_TOKEN": "t0k3n-arg", "ROOT": "/srv/docs", "PATH_KEY": "k3y%2Fpath", "HOST": "host.example"}
    for name, value in {**values, "BASE": "https://base.example/s3gment"}.items():
        monkeypatch.setenv(name, value)
    args = ["--token=${API_TOKEN}", "${ROOT}", "${UNSET:-plain}"]
    child, web, base = load_servers(
        {
            "mcpServers": {
                "child": {"command": "x", "args": args},
                "web": {"url": "https://${HOST}/s/${PATH_KEY}/mcp"},
                "base": {"url": "${BASE}/mcp"},
            }
        }
    )
    assert isinstance(child, StdioServer) and child.args == ("--token=t0k3n-arg", "/srv/docs", "plain")
    assert child.secrets == ("t0k3n-arg", "/srv/docs") and child.credentials == ("t0k3n-arg",)
    assert web.secrets == ("k3y%2Fpath", "k3y/path") and base.secrets == ("s3gment", "s3gment")
    assert not any(secret in repr((child, web, base)) for secret in ("t0k3n", "k3y", "s3gment"))


def test_a_variable_may_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "")
    (server,) = load_servers({"mcpServers": {"a": {"command": "x", "args": ["${EMPTY}", "${EMPTY:-else}"]}}})
    assert isinstance(server, StdioServer) and server.args == ("", "else")


def test_a_list_of_dicts_is_no_list_of_servers() -> None:
    with pytest.raises(McpError, match="StdioServer, HttpServer and InProcessServer"):
        as_servers(cast("Any", [{"command": "x"}]))


def test_two_servers_of_one_name() -> None:
    with pytest.raises(McpError, match="two MCP servers are called 'a'"):
        as_servers([StdioServer("a", "x"), StdioServer("a", "y")])


@given(st.text(max_size=20), st.text(max_size=20))
def test_names_are_safe_and_reversible(server: str, tool: str) -> None:
    assert decode(encode(tool)) == tool
    name = tool_name(server, tool)
    assert len(name) <= 64 and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)


@given(
    st.lists(st.tuples(st.text("a_-x.", min_size=1, max_size=4), st.text("a_-x.", min_size=1, max_size=4)), min_size=2)
)
def test_different_tools_have_different_names(pairs: list[tuple[str, str]]) -> None:
    names = {tool_name(*pair) for pair in pairs}
    assert len(names) == len(set(pairs))


def test_long_names_keep_apart() -> None:
    long = "read_the_contents_of_a_very_long_named_tool_that_goes_on_and_on_"
    assert tool_name("server", long + "a") != tool_name("server", long + "b")


def test_a_repr_shows_variables_in_arguments_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "s3cret")
    (server,) = load_servers({"mcpServers": {"a": {"command": "x", "args": ["--key=${KEY}", "-v"]}}})
    assert isinstance(server, StdioServer) and server.args == ("--key=s3cret", "-v")
    assert "s3cret" not in repr(server) and "args=('--key=${KEY}', '-v')" in repr(server)
