"""Logging in at HTTP servers: the mcp package's OAuth client, a file for its tokens and a browser for the person."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

from m1agent.errors import McpError
from m1agent.mcp.clock import Clock
from m1agent.mcp.config import HttpServer, OAuth
from m1agent.threads import in_thread

if TYPE_CHECKING:
    from mcp.client.auth import OAuthClientProvider
    from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthToken

log = logging.getLogger("m1agent.mcp")
HOST = "127.0.0.1"
CALLBACK = "/callback"
LONGEST_REQUEST = 16 * 1024
PAGE = "<!doctype html><title>m1agent</title><p>{text} You may close this window."


class TokenFile:
    """Tokens and the client's registration in one JSON file that only its owner can read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def get_tokens(self) -> OAuthToken | None:
        """The tokens of the last log-in, or None."""
        from mcp.shared.auth import OAuthToken

        stored = self._read()
        if "tokens" not in stored:
            return None
        tokens = OAuthToken.model_validate(stored["tokens"])
        if (expires := stored.get("expires_at")) is not None and tokens.refresh_token and time.time() >= expires:
            # The client takes loaded tokens as valid for ever; without an access token it refreshes them.
            tokens.access_token = ""
        return tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Keep the tokens of a log-in."""
        expires_at = time.time() + tokens.expires_in if tokens.expires_in is not None else None
        self._write({"tokens": _plain(tokens), "expires_at": expires_at})

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """What the server registered this client as, or None."""
        from mcp.shared.auth import OAuthClientInformationFull

        stored = self._read().get("client")
        return OAuthClientInformationFull.model_validate(stored) if stored is not None else None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Keep what the server registered this client as."""
        self._write({"client": _plain(client_info)})

    def _read(self) -> dict[str, Any]:
        try:
            found: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise McpError(f"{self.path}: the stored login cannot be read; remove the file to log in anew") from error
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}

    def _write(self, changes: Mapping[str, Any]) -> None:
        text = json.dumps(self._read() | dict(changes))
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.unlink(missing_ok=True)
        with open(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        beside.replace(self.path)


@asynccontextmanager
async def login(
    config: HttpServer, oauth: OAuth, clock: Clock, open_url: Callable[[str], object]
) -> AsyncGenerator[OAuthClientProvider]:
    """What logs requests in at `config`; the person is asked only where no stored login will do.

    Raises McpError when the port for the answer is taken, or the stored login cannot be read.
    """
    from mcp.client.auth import OAuthClientProvider
    from mcp.shared.auth import OAuthClientMetadata
    from pydantic import AnyUrl

    storage = TokenFile(_storage(config, oauth))
    async with _Loopback(await _port(oauth, storage)) as loopback:

        async def show(url: str) -> None:
            log.warning("MCP server '%s' asks for a login; open %s", config.name, url)
            loopback.expect()
            with clock.paused():
                await in_thread(functools.partial(open_url, url))

        async def answer() -> AuthorizationCodeResult:
            with clock.paused():
                try:
                    async with asyncio.timeout(oauth.seconds):
                        return await loopback.answer()
                except TimeoutError:
                    raise McpError(f"nobody logged in within {oauth.seconds:g} seconds") from None

        metadata = OAuthClientMetadata(
            client_name=oauth.client_name,
            redirect_uris=[AnyUrl(f"http://{HOST}:{loopback.port}{CALLBACK}")],
            scope=" ".join(oauth.scopes) or None,
            token_endpoint_auth_method="none",
        )
        yield OAuthClientProvider(config.url, metadata, storage, show, answer)


class _Loopback:
    """Listens on this machine for the browser that comes back from the login."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._answer: asyncio.Future[AuthorizationCodeResult] | None = None

    def expect(self) -> None:
        """From here on an answer counts."""
        self._answer = asyncio.get_running_loop().create_future()

    async def answer(self) -> AuthorizationCodeResult:
        assert self._answer is not None
        return await self._answer

    async def __aenter__(self) -> _Loopback:
        try:
            self._server = await asyncio.start_server(self._serve, HOST, self.port, limit=LONGEST_REQUEST)
        except OSError as error:
            raise McpError(
                f"oauth: port {self.port} is taken ({error.strerror}); free it, or choose another redirect_port"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            status, text = self._take(head.split(b"\r\n", 1)[0].decode("latin-1"))
            body = PAGE.format(text=text).encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()

    def _take(self, request: str) -> tuple[str, str]:
        """The status and text for a request line; the answer it carries goes to who waits for it."""
        from mcp.shared.auth import AuthorizationCodeResult

        method, _, rest = request.partition(" ")
        address = urlsplit(rest.rpartition(" ")[0])
        if method != "GET" or address.path != CALLBACK or self._answer is None or self._answer.done():
            return "404 Not Found", "Nothing is here."
        given = {name: values[0] for name, values in parse_qs(address.query).items()}
        if "error" in given:
            told = given.get("error_description", given["error"])[:200]
            self._answer.set_exception(McpError(f"the login was refused: {told}"))
            return "200 OK", "You are not logged in."
        code, state, issuer = given.get("code", ""), given.get("state"), given.get("iss")
        self._answer.set_result(AuthorizationCodeResult(code=code, state=state, iss=issuer))
        return "200 OK", "You are logged in."


async def _port(oauth: OAuth, storage: TokenFile) -> int:
    """The port asked for, else the one that was registered with the server, else 0."""
    client = None if oauth.redirect_port else await storage.get_client_info()
    if client is None or not client.redirect_uris:
        return oauth.redirect_port
    return client.redirect_uris[0].port or 0


def _storage(config: HttpServer, oauth: OAuth) -> Path:
    if oauth.storage:
        return Path(oauth.storage).expanduser()
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "m1agent" / "oauth" / f"{hashlib.sha256(config.url.encode()).hexdigest()[:16]}.json"


def _plain(model: Any) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_none=True)
