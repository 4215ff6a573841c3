"""Outbound HTTP to addresses that strangers choose: nothing but the public internet is reached.

Every name is resolved once, all its answers are judged, and a judged address is dialled, so that a resolver which
answers differently the second time gains nothing. The URL is never rewritten: TLS names and certificates keep working.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

import httpcore2
import httpx2

from server.errors import BodyTooLarge, RefusedAddress
from server.look_ups import LookUps, Resolver, ask_system

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORTS = frozenset({80, 443, 8080, 8443})

#: What leads elsewhere when a picture is asked for.
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: What may stand in a Location as it is; bytes beyond ASCII are percent-encoded one by one, whatever they spell.
_LOCATION_SAFE = "!#$%&'()*+,/:;=?@[]~"

#: Everything httpcore2 and the resolver raise when there is no proper answer, deadlines included.
_FAILURES = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError)

#: Written out beside ``is_global``, which depends on Python's patch level, lets multicast through and looks into no
#: tunnel: 6to4, NAT64, Teredo and ISATAP addresses carry an IPv4 address that may be a private one.
_REFUSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        # Azure's virtual public address of the host.
        "168.63.129.16/32",
        # Unspecified, loopback and the old IPv4-compatible addresses.
        "::/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/32",
        "2001:db8::/32",
        "2002::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)

#: Upper half of an ISATAP interface id, with and without the universal bit.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)

#: What every name under localhost resolves to (RFC 6761, 6.3).
_LOOPBACK = ipaddress.IPv4Address("127.0.0.1")

_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
#: A last label such as 1, 017 or 0x7f makes the whole host an IPv4 address for most resolvers.
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


def is_public(address: str | Address) -> bool:
    """Global unicast, no tunnel to anything else. Raises ``ValueError`` for what is no address."""
    parsed = ipaddress.ip_address(address)
    if any(parsed.version == network.version and parsed in network for network in _REFUSED):
        return False
    if parsed.version == 6 and (int(parsed) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return False
    return parsed.is_global and not parsed.is_multicast


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """One entry of the allow-list: a host name or a network, on one port or on all."""

    name: str | None = None
    network: Network | None = None
    port: int | None = None

    @classmethod
    def parse(cls, entry: str) -> Allowed:
        """``host``, ``host:port``, an address, ``address:port``, ``[IPv6]:port``, a network; or ``ValueError``."""
        try:
            # 192.168.1.20/24 is meant as the network around it.
            return cls(network=ipaddress.ip_network(entry.strip("[]"), strict=False))
        except ValueError:
            host, colon, port = entry.rpartition(":")
        if not colon:
            host, port = entry, ""
        try:
            name = _canonical(host)
        except RefusedAddress:
            raise ValueError(f"{entry!r} is no host, address or network") from None
        number = int(port) if port else None
        if isinstance(name, str):
            return cls(name=name, port=number)
        return cls(network=ipaddress.ip_network(name), port=number)

    def covers(self, host: str | Address, address: Address | None, port: int) -> bool:
        """Whether ``host``, which resolved to ``address``, may be reached on ``port``."""
        if self.port is not None and self.port != port:
            return False
        if self.network is None:
            return self.name == host
        return address is not None and address.version == self.network.version and address in self.network


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back; the body is not read."""

    status: int
    #: As sent, or "".
    retry_after: str = ""


class Guard:
    """Talks to public addresses, and to those the operator listed."""

    def __init__(self, allow: Iterable[str] = (), *, resolve: Resolver = ask_system) -> None:
        self._allow = tuple(Allowed.parse(entry) for entry in allow)
        self._look_up = LookUps(resolve)

    def check_url(self, url: str) -> None:
        """Refuses what can be seen to be hopeless without asking a resolver: raises ``RefusedAddress``."""
        parsed = _parse(url)
        host = _canonical(parsed.host)
        port = _port(parsed)
        if isinstance(host, str) and host.rpartition(".")[2] != "localhost":
            # A network on the list may turn out to hold the host's address, on any port.
            listed = self._covers(host, None, port) or any(entry.network for entry in self._allow)
            if port not in PORTS and not listed:
                raise RefusedAddress(f"The port in the URL is not allowed: {port}")
        elif not self._may_dial(host, _LOOPBACK if isinstance(host, str) else host, port):
            raise _unreachable(parsed.host)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> Answer:
        """Posts once, in ``timeout_s`` seconds from its own look-up on; redirects are answers like any other.

        Raises ``RefusedAddress``, with one text for refused and unreachable, so that nothing is learned about the
        networks around the server; the cause is for the log.
        """
        self.check_url(url)
        parsed = _parse(url)
        sent = _headers() | _credentials(parsed) | {name.lower(): value for name, value in headers.items()}
        deadline = asyncio.timeout(None)

        def begin() -> None:
            # Not sooner: the receiver is not to blame for the look-ups that wait before its own.
            deadline.reschedule(asyncio.get_running_loop().time() + timeout_s)

        try:
            async with (
                deadline,
                self._pool(begin) as pool,
                pool.stream("POST", _target(parsed), headers=list(sent.items()), content=body) as response,
            ):
                return Answer(status=response.status, retry_after=_header(response, b"retry-after").decode("latin-1"))
        except _FAILURES as error:
            raise _unreachable(parsed.host) from error

    async def get(
        self, url: str, *, max_bytes: int, timeout_s: float = 20.0, redirects: int = 3, accept: str = "*/*"
    ) -> bytes:
        """The body behind ``url``, at most ``max_bytes`` as they are counted, in ``timeout_s`` seconds all in all.

        Every redirect passes the gate that the first address passed; credentials in ``url`` go to its own origin and
        nowhere else, those in a redirect nowhere. Raises ``BodyTooLarge``; ``RefusedAddress`` for all else, with one
        text for refused, unreachable, late and anything but a plain 200.
        """
        self.check_url(url)
        first = _parse(url)
        try:
            async with asyncio.timeout(timeout_s), self._pool() as pool:
                return await self._follow(pool, first, max_bytes, redirects, _headers(accept))
        except (*_FAILURES, RefusedAddress) as error:
            raise _unreachable(first.host) from error

    async def _follow(
        self,
        pool: httpcore2.AsyncConnectionPool,
        first: httpx2.URL,
        max_bytes: int,
        redirects: int,
        headers: dict[str, str],
    ) -> bytes:
        url = first
        for _ in range(redirects + 1):
            self.check_url(str(url))
            sent = headers | (_credentials(first) if _origin(url) == _origin(first) else {})
            async with pool.stream("GET", _target(url), headers=list(sent.items())) as response:
                if response.status not in _REDIRECTS:
                    return await _read(response, max_bytes)
                url = _redirected(url, _header(response, b"location"))
        raise httpcore2.RemoteProtocolError(f"more than {redirects} redirects")

    def _pool(self, begin: Callable[[], None] = lambda: None) -> httpcore2.AsyncConnectionPool:
        """Connections for one request: each is judged when it is made, so none is kept.

        No httpx2 client on top: it logs whole URLs, with the secrets in their queries, and looks for proxies in the
        environment, which would resolve names themselves.
        """
        return httpcore2.AsyncConnectionPool(
            ssl_context=self._tls, network_backend=_Dialler(self, begin), max_keepalive_connections=0
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx2.create_ssl_context(trust_env=False)

    async def addresses(self, host: str, port: int, begin: Callable[[], None] = lambda: None) -> list[str]:
        """Where the host may be dialled, in the resolver's order. Raises ``OSError`` if any answer is refused.

        ``begin`` is called once nothing but the host's own look-up is waited for.
        """
        name = _canonical(host)
        if isinstance(name, str):
            answers = await self._look_up(name, port, begin)
            found = [ipaddress.ip_address(address.partition("%")[0]) for address in answers]
        else:
            begin()
            found = [name]
        refused = [str(address) for address in found if not self._may_dial(name, address, port)]
        if refused or not found:
            raise ConnectionRefusedError(f"{host} port {port} is refused: {', '.join(refused) or 'no address'}")
        return [str(address) for address in dict.fromkeys(found)]

    def _may_dial(self, host: str | Address, address: Address, port: int) -> bool:
        return (port in PORTS and is_public(address)) or self._covers(host, address, port)

    def _covers(self, host: str | Address, address: Address | None, port: int) -> bool:
        return any(entry.covers(host, address, port) for entry in self._allow)


class _Dialler(httpcore2.AsyncNetworkBackend):
    """Dials vetted addresses and nothing else."""

    def __init__(self, guard: Guard, begin: Callable[[], None]) -> None:
        self._guard = guard
        self._begin = begin
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Tries the host's addresses in turn. Raises ``httpcore2.ConnectError``."""
        try:
            addresses = await self._guard.addresses(host, port, self._begin)
        except (OSError, ValueError) as error:
            raise httpcore2.ConnectError(str(error)) from error
        failure: Exception | None = None
        for address in addresses:
            try:
                stream = await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
                continue
            return await _checked(stream, address)
        raise httpcore2.ConnectError(f"{host} port {port} is not reachable: {failure}") from failure


async def _checked(stream: httpcore2.AsyncNetworkStream, address: str) -> httpcore2.AsyncNetworkStream:
    """The connected peer is the one that was vetted: the last word is the socket's."""
    peer = stream.get_extra_info("server_addr")
    if not peer or ipaddress.ip_address(str(peer[0]).partition("%")[0]) != ipaddress.ip_address(address):
        await stream.aclose()
        raise httpcore2.ConnectError(f"dialled {address}, reached {peer}")
    return stream


async def _read(response: httpcore2.Response, max_bytes: int) -> bytes:
    """The body of a plain 200. Raises ``BodyTooLarge``, or ``httpcore2.RemoteProtocolError`` for another answer."""
    encoding = _header(response, b"content-encoding").strip().lower()
    if response.status != 200 or encoding not in (b"", b"identity"):
        # Packed although asked not to: what it would unpack to is not counted anywhere.
        raise httpcore2.RemoteProtocolError(f"answered {response.status}, content-encoding {encoding!r}")
    length = _header(response, b"content-length")
    too_large = BodyTooLarge(f"The answer is larger than {max_bytes} bytes.")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    async for part in response.aiter_stream():
        body += part
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def _redirected(url: httpx2.URL, location: bytes) -> httpx2.URL:
    """Where a redirect leads. Raises ``RefusedAddress`` for what cannot be read."""
    if not location:
        raise RefusedAddress("The redirect names no address")
    try:
        return url.join(quote(location, safe=_LOCATION_SAFE))
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise RefusedAddress("The redirect cannot be read") from error


def _target(url: httpx2.URL) -> httpcore2.URL:
    return httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _origin(url: httpx2.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, _port(url)


def _headers(accept: str = "*/*") -> dict[str, str]:
    return {"user-agent": "latentd", "accept": accept, "accept-encoding": "identity"}


def _parse(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise RefusedAddress("The URL cannot be read") from error
    if parsed.scheme not in ("http", "https"):
        raise RefusedAddress("The URL must begin with http:// or https://")
    if not parsed.host:
        raise RefusedAddress("The URL names no host")
    return parsed


def _credentials(url: httpx2.URL) -> dict[str, str]:
    """``https://user:password@host/`` as RFC 7617 wants it sent."""
    if not url.userinfo:
        return {}
    pair = f"{url.username}:{url.password}".encode()
    return {"authorization": f"Basic {base64.b64encode(pair).decode('ascii')}"}


def _header(response: httpcore2.Response, name: bytes) -> bytes:
    return next((value for key, value in response.headers if key.lower() == name), b"")


def _port(url: httpx2.URL) -> int:
    if url.port is not None:
        return url.port
    return 443 if url.scheme == "https" else 80


def _canonical(host: str) -> str | Address:
    """A lower-case name without its final dot, or the address that the host spells in one way or another.

    Raises ``RefusedAddress`` for what can be neither.
    """
    plain = host.lower().removesuffix(".")
    try:
        return ipaddress.ip_address(plain.strip("[]"))
    except ValueError:
        pass
    if _ENDS_IN_NUMBER.fullmatch(plain):
        # Decimal, octal, hexadecimal and short forms (2130706433, 0177.1, 0x7f.1), as the C library reads them.
        try:
            return ipaddress.IPv4Address(socket.inet_aton(plain))
        except (OSError, ValueError) as error:
            raise _unreachable(host) from error
    try:
        name = plain.encode("idna").decode("ascii") if not plain.isascii() else plain
    except UnicodeError as error:
        raise _unreachable(host) from error
    if len(name) > 253 or not _HOST_NAME.fullmatch(name):
        raise _unreachable(host)
    return name


def _unreachable(host: str) -> RefusedAddress:
    return RefusedAddress(f"The address in the URL cannot be reached: {host[:100]}")
