"""A server that only lets in who has logged in, and the authorization server that logs people in: all on one port.

Usage: guarded.py PORT [refuse]
"""

from __future__ import annotations

import secrets
import sys
import time
from collections import Counter

from mcp.server import MCPServer
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    AuthorizeError,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    construct_redirect_uri,
)
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl

PORT = int(sys.argv[1])
ADDRESS = f"http://127.0.0.1:{PORT}"
REFUSES = sys.argv[2:] == ["refuse"]
LIFETIME = 3600


class Logins(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    """Everybody is who they say; everything is kept in memory, and counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.access: dict[str, AccessToken] = {}
        self.refresh: dict[str, RefreshToken] = {}

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        self.counts["registered"] += 1
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        self.counts["authorized"] += 1
        if REFUSES:
            raise AuthorizeError("access_denied", "not you")
        code = AuthorizationCode(
            code=secrets.token_urlsafe(),
            scopes=params.scopes or [],
            expires_at=time.time() + 60,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        self.codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        del self.codes[authorization_code.code]
        return self._tokens(client, authorization_code.scopes, authorization_code.resource)

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> RefreshToken | None:
        return self.refresh.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        self.counts["refreshed"] += 1
        del self.refresh[refresh_token.token]
        return self._tokens(client, scopes, refresh_token.resource)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self.access.pop(token.token, None)

    def _tokens(self, client: OAuthClientInformationFull, scopes: list[str], resource: str | None) -> OAuthToken:
        access, refresh = secrets.token_urlsafe(), secrets.token_urlsafe()
        about = {"client_id": client.client_id, "scopes": scopes, "resource": resource}
        self.access[access] = AccessToken.model_validate({"token": access, **about})
        self.refresh[refresh] = RefreshToken.model_validate({"token": refresh, **about})
        return OAuthToken(access_token=access, expires_in=LIFETIME, refresh_token=refresh, scope=" ".join(scopes))


logins = Logins()
mcp = MCPServer(
    "guarded",
    log_level="CRITICAL",
    auth_server_provider=logins,
    auth=AuthSettings(
        issuer_url=AnyHttpUrl(ADDRESS),
        resource_server_url=AnyHttpUrl(f"{ADDRESS}/mcp"),
        client_registration_options=ClientRegistrationOptions(
            enabled=True, valid_scopes=["read"], default_scopes=["read"]
        ),
        required_scopes=["read"],
        validate_token_resource=True,
    ),
)


@mcp.tool()
def counts() -> dict[str, int]:
    return dict(logins.counts)


mcp.run("streamable-http", host="127.0.0.1", port=PORT)
