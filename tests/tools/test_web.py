"""The web toolset against real servers on this machine: in everyday use, and led to where it must not go."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from m1agent import ToolError, Toolset
from m1tools.web import Bounds, Brave, Hit, Searxng, fetching, web
from m1tools.web import addresses as resolving
from m1tools.web.addresses import Guard, is_public

ARTICLE = """<html><head><title>Tea</title></head><body><nav><a href=/a>Home</a> <a href=/b>Log in</a></nav>
<article><h1>On tea</h1>%s<p>See <a href="/more">more of it</a>.</p></article>
<script>steal()</script><footer>All rights reserved</footer></body></html>"""
PARAGRAPH = (
    "<p>Tea number {} is made of the leaves of a plant, and people argue about how hot the water ought to be.</p>"
)


class Site:
    """A server: `pages` gives for a path the status, the headers and the body; `asked` are requests as they came."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                status, headers, body = site.pages.get(self.path.partition("?")[0], (404, {}, b"nothing here"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def add(self, path: str, body: bytes | str = b"", status: int = 200, **headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body.encode() if isinstance(body, str) else body
        self.pages[path] = (status, {"Content-Type": "text/html; charset=utf-8", **named}, data)
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.server.shutdown()
        site.server.server_close()
        thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as made:
        yield made


@pytest.fixture
def tools(site: Site) -> Toolset:
    return web(allowed=[f"127.0.0.1:{site.port}"])


def fetch(tools: Toolset, url: str, **arguments: object) -> str:
    return anyio.run(tools["fetch_page"].call, {"url": url, **arguments})


def refused(tools: Toolset, url: str) -> str:
    began = time.monotonic()
    with pytest.raises(ToolError) as caught:
        fetch(tools, url)
    assert time.monotonic() - began < 20
    return str(caught.value)


# Reading


def test_a_page_is_its_main_text_as_markdown(site: Site, tools: Toolset) -> None:
    text = fetch(tools, site.add("/tea", ARTICLE % "".join(map(PARAGRAPH.format, range(6)))))
    assert "Tea\n" in text and "how hot the water" in text
    assert f"[more of it](http://127.0.0.1:{site.port}/more)" in text
    assert "steal" not in text and "Log in" not in text
    assert text.startswith("[A page of the web.")


def test_a_page_without_main_text_is_given_whole(site: Site, tools: Toolset) -> None:
    text = fetch(tools, site.add("/", "<html><body><ul><li><a href=/1>One</a></ul></body></html>"))
    assert text.endswith(f"- [One](http://127.0.0.1:{site.port}/1)")


def test_a_long_text_is_read_in_parts_and_fetched_once(site: Site, tools: Toolset) -> None:
    url = site.add("/long.txt", "line of text\n" * 2000, Content_Type="text/plain")
    first = fetch(tools, url)
    assert "[Goes on: start=12000, of " in first
    assert "Goes on: start=24000" in fetch(tools, url, start=12000)
    assert site.paths.count("/long.txt") == 1


def test_gzip_and_charset(site: Site, tools: Toolset) -> None:
    body = gzip.compress("müde Möwen".encode("latin-1"))
    url = site.add("/de.txt", body, Content_Type="text/plain; charset=ISO-8859-1", Content_Encoding="gzip")
    assert "müde Möwen" in fetch(tools, url)


def test_redirects_are_followed_and_told(site: Site, tools: Toolset) -> None:
    site.add("/new.txt", "moved here", Content_Type="text/plain")
    assert "/new.txt\n\nmoved here" in fetch(tools, site.add("/old", status=301, Location="/new.txt"))


def test_no_cookies_proxies_or_surroundings_are_sent(
    site: Site, tools: Toolset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    fetch(tools, site.add("/x", "<p>x", Set_Cookie="a=b"))
    fetch(tools, site.add("/y", "<p>y"))
    _, headers = site.asked[-1]
    assert headers["host"] == f"127.0.0.1:{site.port}" and "cookie" not in headers


# robots.txt


def test_robots_are_kept_to_and_asked_once(site: Site, tools: Toolset) -> None:
    site.add("/robots.txt", "User-agent: *\nDisallow: /private", Content_Type="text/plain")
    assert "robots.txt asks" in refused(tools, site.add("/private/x", "secret"))
    assert "open" in fetch(tools, site.add("/open", "<p>open"))
    assert site.paths == ["/robots.txt", "/open"]
    redirect = site.add("/go", status=302, Location="/private/x")
    assert "robots.txt asks" in refused(tools, redirect)
    assert "secret" in fetch(web(allowed=[f"127.0.0.1:{site.port}"], robots=False), site.add("/private/x", "secret"))


def test_a_site_whose_robots_fail_is_left_alone(site: Site, tools: Toolset) -> None:
    site.add("/robots.txt", "oops", status=503)
    assert "robots.txt cannot be had" in refused(tools, site.add("/x", "x"))


# Where it must not go

ODD = [
    "http://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://127.1:{port}/",
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://①②⑦.0.0.1:{port}/",
    "http://127。0。0。1:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://100.100.100.200/latest/meta-data/",
    "http://168.63.129.16/machine",
    "http://10.0.0.1/",
    "http://192.168.1.1/",
    "http://172.16.0.1/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/_GET%20/",
    "ftp://127.0.0.1/",
    "javascript:alert(1)",
    "data:text/plain,hello",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}/",
    "http:///etc/passwd",
    "http://",
    "http://a\nb/",
    "http://" + "a" * 3000,
]


@pytest.mark.parametrize("url", ODD)
def test_odd_addresses_are_not_visited(site: Site, url: str) -> None:
    site.add("/", "the inside")
    assert "the inside" not in refused(web(robots=False), url.format(port=site.port))
    assert site.asked == []


def test_only_the_chosen_port_is_open(site: Site, tools: Toolset) -> None:
    with serving() as other:
        assert "private address" in refused(tools, other.add("/", "the inside"))
        assert other.asked == []


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "//0:{port}/"])
def test_a_redirect_to_a_private_address_is_not_followed(site: Site, tools: Toolset, target: str) -> None:
    with serving() as inside:
        inside.add("/", "the inside")
        url = site.add("/go", status=302, Location=target.format(port=inside.port))
        assert "private address" in refused(tools, url)
        assert inside.asked == []


def test_a_redirect_to_a_file_is_not_followed(site: Site, tools: Toolset) -> None:
    assert "expected http" in refused(tools, site.add("/go", status=302, Location="file:///etc/passwd"))


def test_robots_do_not_lead_inside(site: Site, tools: Toolset) -> None:
    with serving() as inside:
        site.add("/robots.txt", status=302, Location=inside.add("/", "x"))
        assert "private address" in refused(tools, site.add("/x", "x"))
        assert inside.asked == []


def named(monkeypatch: pytest.MonkeyPatch, answers: Callable[[], list[str]]) -> list[str]:
    """Lets `answers` say where names lead, as the name server of an attacker does; which ones were asked for."""
    real, asked = socket.getaddrinfo, list[str]()

    def lookup(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        if str(host).endswith(".example"):
            asked.append(str(host))
            return [found for address in answers() for found in real(address, port, *rest, **named)]
        return real(host, port, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


def test_a_name_that_leads_inside_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, lambda: ["93.184.215.14", "127.0.0.1"])
    assert "private address" in refused(web(), f"http://rebind.example:{site.port}/")
    assert site.asked == []


def test_a_name_cannot_change_between_check_and_connection(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter([["127.0.0.1"]] + [["127.0.0.2"]] * 100)
    asked = named(monkeypatch, lambda: next(turns))
    site.add("/", "<p>checked")
    url = f"http://rebind.example:{site.port}/"
    assert "checked" in fetch(web(allowed=[f"127.0.0.1:{site.port}"], robots=False), url)
    assert asked == ["rebind.example"]  # Asked once: what was checked is what was connected to.
    assert site.asked[0][1]["host"] == f"rebind.example:{site.port}"


def certificate(folder: Path, name: str) -> Path:
    """A certificate for one name, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin = datetime.now(UTC) - timedelta(days=1)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, begin, begin + timedelta(days=30))
    signed = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False).sign(
        key, hashes.SHA256()
    )
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / f"{name}.pem"
    file.write_bytes(plain + signed.public_bytes(serialization.Encoding.PEM))
    return file


def test_certificates_are_held_against_the_name(
    site: Site, tools: Toolset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, lambda: ["127.0.0.1"])
    file = certificate(tmp_path, "tea.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    site.server.socket = server.wrap_socket(site.server.socket, server_side=True)
    site.add("/x", "hot water", Content_Type="text/plain")
    assert "cannot be reached" in refused(tools, f"https://tea.example:{site.port}/x")
    trusting = ssl.create_default_context(cafile=str(file))
    monkeypatch.setattr(fetching, "tls", lambda: trusting)
    assert "hot water" in fetch(tools, f"https://tea.example:{site.port}/x")
    assert "cannot be reached" in refused(tools, f"https://other.example:{site.port}/x")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(resolving.ipaddress.ip_address(address))


def test_what_is_allowed_is_an_address_and_a_port() -> None:
    with pytest.raises(ValueError, match=r"expected an address and a port.*'localhost'"):
        Guard(["localhost"])


# Bounds


def test_too_much(site: Site) -> None:
    tools = web(allowed=[f"127.0.0.1:{site.port}"], bounds=Bounds(size=100_000), robots=False)
    url = site.add("/big", b"x" * 300_000, Content_Type="text/plain")
    assert "more than 100000 bytes" in refused(tools, url)


def test_a_bomb_in_gzip_ends_at_the_bound(site: Site) -> None:
    tools = web(allowed=[f"127.0.0.1:{site.port}"], bounds=Bounds(size=100_000), robots=False)
    url = site.add("/bomb", gzip.compress(bytes(20_000_000)), Content_Encoding="gzip")
    assert "more than 100000 bytes" in refused(tools, url)


@pytest.mark.parametrize("encoding", ["br", "gzip"])
def test_encodings_that_cannot_be_unpacked(site: Site, tools: Toolset, encoding: str) -> None:
    assert refused(tools, site.add("/x", b"no such thing", Content_Encoding=encoding))


def test_circles_of_redirects_end(site: Site, tools: Toolset) -> None:
    assert "more than 5 redirects" in refused(tools, site.add("/round", status=302, Location="/round"))


def test_a_server_that_sends_for_ever_is_left(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        port = server.getsockname()[1]
        tools = web(allowed=[f"127.0.0.1:{port}"], bounds=Bounds(seconds=0.5), robots=False)
        assert "more than 0.5 s" in refused(tools, f"http://127.0.0.1:{port}/")
        stop.set()
        thread.join()


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "video/mp4"])
def test_only_pages_and_text_are_read(site: Site, tools: Toolset, kind: str) -> None:
    assert f"got {kind}" in refused(tools, site.add("/x", b"\x89PNG\0", Content_Type=kind))


def test_bytes_that_say_they_are_text(site: Site, tools: Toolset) -> None:
    assert "expected text" in refused(tools, site.add("/x", b"MZ\0\0", Content_Type="text/plain"))


def test_a_page_nested_without_end(site: Site, tools: Toolset) -> None:
    assert "nested too deeply" in refused(tools, site.add("/deep", "<div>" * 100_000 + "x"))


def test_an_error_of_the_server_is_told(site: Site, tools: Toolset) -> None:
    assert "status 404" in refused(tools, f"http://127.0.0.1:{site.port}/none")


# Searching


def search(tools: Toolset, query: str, **arguments: object) -> str:
    return anyio.run(tools["search_web"].call, {"query": query, **arguments})


def test_searxng(site: Site) -> None:
    site.add(
        "/search",
        '{"results": [{"title": "Tea", "url": "https://tea.example", "content": "hot  water"}, {"title": 1}, 2]}',
    )
    text = search(web(Searxng(f"http://127.0.0.1:{site.port}/")), "hot tea & milk")
    assert text == "1. Tea\n   https://tea.example\n   hot water"
    assert site.paths == ["/search?q=hot+tea+%26+milk&format=json"]


def test_brave_sends_its_key_and_never_shows_it(site: Site) -> None:
    url = site.add("/web", '{"web": {"results": [{"title": "A", "url": "https://a.example", "description": "b"}]}}')
    engine = Brave("k-swordfish", url)
    assert "https://a.example" in search(web(engine), "a", count=3)
    assert site.asked[0][1]["x-subscription-token"] == "k-swordfish"
    assert "swordfish" not in repr(engine)
    site.add("/web", "k-swordfish is no key", status=401)
    with pytest.raises(ToolError) as caught:
        search(web(engine), "a")
    assert str(caught.value) == "The search failed: status 401."


def test_a_search_that_is_led_elsewhere_or_breaks(site: Site) -> None:
    with serving() as other:
        site.add("/search", status=302, Location=other.add("/", "{}"))
        with pytest.raises(ToolError, match="status 302"):
            search(web(Searxng(f"http://127.0.0.1:{site.port}")), "a")
        assert other.asked == []
    site.add("/search", "<html>")
    with pytest.raises(ToolError, match="no JSON object"):
        search(web(Searxng(f"http://127.0.0.1:{site.port}")), "a")


def test_any_function_searches_and_the_environment_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def mine(query: str, count: int) -> list[Hit]:
        return [Hit(f"{query} {number}", "https://x.example") for number in range(count + 5)]

    assert search(web(mine), "q", count=2).count("https://x.example") == 2
    for name in ("BRAVE_API_KEY", "SEARXNG_URL"):
        monkeypatch.delenv(name, raising=False)
    assert [tool.name for tool in web()] == ["fetch_page"]
    monkeypatch.setenv("SEARXNG_URL", "http://127.0.0.1:9")
    assert [tool.name for tool in web()] == ["fetch_page", "search_web"]
