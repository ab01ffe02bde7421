"""The page at the server's address: one file, which talks to the server as any other client does."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

FILE = Path(__file__).parent / "page.html"
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def page() -> Response:
    """The page, with a policy by which nothing but its own script runs, and nothing but this server is asked."""
    html = FILE.read_text(encoding="utf-8")
    digests = [hashlib.sha256(script.encode()).digest() for script in SCRIPT.findall(html)]
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)
