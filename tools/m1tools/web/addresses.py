"""Which machines may be reached: those of the public internet, by the address that was checked and no other.

A name is resolved once, every address it has is checked, and the connection goes to one of these; so neither an odd way
to write an address, nor a redirect, nor a name that changes its address in between leads into a private network.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

import httpx2

from m1agent import ToolError
from m1agent.threads import in_thread

Address = IPv4Address | IPv6Address
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
COMPATIBLE = ipaddress.IPv6Network("::/96")
SERVICES = frozenset({ipaddress.ip_address("168.63.129.16")})  # Azure's, at a public address.
TRIES = 4


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet; one that carries an IPv4 address is judged by that."""
    if carried := list(_carried(address)):
        return all(map(is_public, carried))
    if address in SERVICES or address in LOCAL_NAT64 or address in COMPATIBLE:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _carried(address: Address) -> Iterator[Address]:
    """The IPv4 addresses that an IPv6 one may lead to."""
    if isinstance(address, IPv4Address):
        return
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo
    if address in NAT64:
        yield IPv4Address(int(address) & 0xFFFFFFFF)


class Guard:
    """Says where a host's name leads, and refuses private addresses but those of `allowed` (`"127.0.0.1:8080"`).

    Raises:
        ValueError: something in `allowed` is no address and port.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(map(_address_and_port, allowed))

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, checked.

        Raises:
            ToolError: it has none, or one of them is private.
        """
        found = await in_thread(lambda: _resolved(host, port))
        for address in found:
            if (address, port) not in self._allowed and not is_public(address):
                raise ToolError(f"{host}: it leads to a private address, which is not visited.")
        return [str(address) for address in found]


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Connects to the addresses that a guard gives for a host, while TLS and the server are told the host's name.

    No connection is kept: with addresses as origins, one would be shared by hosts that have only their address in
    common.
    """

    def __init__(self, guard: Guard, context: ssl.SSLContext) -> None:
        self._guard = guard
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._inner = httpx2.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await self._guard.addresses(host, port)
        tried = addresses[:TRIES]
        for address in tried[:-1]:
            with suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return await self._send(request, url, host, address)
        return await self._send(request, url, host, tried[-1])

    async def _send(self, request: httpx2.Request, url: httpx2.URL, host: str, address: str) -> httpx2.Response:
        there = httpx2.Request(
            request.method,
            url.copy_with(host=address),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )
        return await self._inner.handle_async_request(there)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _resolved(host: str, port: int) -> list[Address]:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ToolError(f"{host}: there is no such host.") from None
    plain = [str(answer[4][0]).partition("%")[0] for answer in answers]
    return [ipaddress.ip_address(address) for address in dict.fromkeys(plain)]


def _address_and_port(text: str) -> tuple[Address, int]:
    host, _, port = text.rpartition(":")
    try:
        return ipaddress.ip_address(host.strip("[]")), int(port)
    except ValueError:
        raise ValueError(f"allowed: expected an address and a port, as 127.0.0.1:8080, got {text!r}") from None
