"""What a site asks programs to leave alone (RFC 9309), read by Protego."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

import httpx2

from m1agent import ToolError
from m1tools.web.fetching import Fetcher, parse_url

SIZE = 500 << 10
HOPS = 5
HOLD_SECONDS = 3600.0
KEPT = 200


class Robots:
    """The rules of sites, each asked for once an hour."""

    def __init__(self, fetcher: Fetcher, agent: str) -> None:
        self._fetcher, self._agent = fetcher, agent
        self._known: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    async def check(self, url: httpx2.URL) -> None:
        """Raises ToolError where a site's robots.txt asks that the address be left alone, or cannot be had."""
        origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        until, rules = self._known.get(origin, (0.0, None))
        if time.monotonic() >= until:
            rules = await self._rules(origin)
            self._known[origin] = (time.monotonic() + HOLD_SECONDS, rules)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        if rules is not None and not rules.can_fetch(str(url), self._agent):
            raise ToolError(f"{url.host}: its robots.txt asks programs to leave this page alone.")

    async def _rules(self, origin: str) -> Any:
        """None where all is allowed: as the standard says, where there is no file, or none for us."""
        from protego import Protego

        url = parse_url(origin + "/robots.txt")
        for _ in range(HOPS):
            answer = await self._fetcher.get(url, size=SIZE)
            if not answer.location:
                break
            url = parse_url(str(url.join(answer.location)))
        else:
            return None
        if answer.status >= 500:
            raise ToolError(f"{url.host}: its robots.txt cannot be had now (status {answer.status}). Try later.")
        if answer.status != 200:
            return None
        return Protego.parse(answer.body.decode("utf-8", "replace"))
