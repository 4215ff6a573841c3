"""Outbound HTTP to addresses that strangers choose: nothing but the public internet is reached.

Every name is resolved once, all its answers are judged, and a judged address is dialled, so that a resolver which
answers differently the second time gains nothing. The URL is never rewritten: TLS names and certificates keep working.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

import httpcore2
import httpx2

from server.addresses import Address, Allowed, canonical, is_public, unreachable
from server.errors import BodyTooLarge, RefusedAddress
from server.look_ups import LookUps, Resolver, ask_system

PORTS = frozenset({80, 443, 8080, 8443})

#: What leads elsewhere when a picture is asked for.
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: What may stand in a Location as it is; bytes beyond ASCII are percent-encoded one by one, whatever they spell.
_LOCATION_SAFE = "!#$%&'()*+,/:;=?@[]~"

#: Everything httpcore2 and the resolver raise when there is no proper answer, deadlines included.
_FAILURES = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError)

#: What every name under localhost resolves to (RFC 6761, 6.3).
_LOOPBACK = ipaddress.IPv4Address("127.0.0.1")


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
        host = canonical(parsed.host)
        port = _port(parsed)
        if isinstance(host, str) and host.rpartition(".")[2] != "localhost":
            # A network on the list may turn out to hold the host's address, on any port.
            listed = self._covers(host, None, port) or any(entry.network for entry in self._allow)
            if port not in PORTS and not listed:
                raise RefusedAddress(f"The port in the URL is not allowed: {port}")
        elif not self._may_dial(host, _LOOPBACK if isinstance(host, str) else host, port):
            raise unreachable(parsed.host)

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
            raise unreachable(parsed.host) from error

    async def get(
        self, url: str, *, max_bytes: int, timeout_s: float = 20.0, redirects: int = 3, accept: str = "*/*"
    ) -> bytes:
        """The body behind ``url``, at most ``max_bytes`` as they are counted, in ``timeout_s`` seconds all in all.

        Every redirect passes the gate that the first address passed; credentials in ``url`` go to its own origin and
        nowhere else, those in a redirect nowhere. Raises ``BodyTooLarge``; ``RefusedAddress`` for all else, with one
        text for refused, unreachable, late and anything but a plain 200.
        """
        body = bytearray()

        async def take(part: bytes) -> None:
            body.extend(part)

        deadline = asyncio.timeout(timeout_s)
        await self._get(url, take, deadline, max_bytes, redirects, accept)
        return bytes(body)

    async def download(
        self, url: str, take: Callable[[bytes], Awaitable[None]], *, max_bytes: int, stall_s: float = 60.0
    ) -> None:
        """As ``get``, handed over part by part, however long it takes: no part may be ``stall_s`` seconds late."""
        deadline = asyncio.timeout(stall_s)

        async def take_in_time(part: bytes) -> None:
            await take(part)
            deadline.reschedule(asyncio.get_running_loop().time() + stall_s)

        await self._get(url, take_in_time, deadline, max_bytes, redirects=5, accept="*/*")

    async def _get(
        self,
        url: str,
        take: Callable[[bytes], Awaitable[None]],
        deadline: asyncio.Timeout,
        max_bytes: int,
        redirects: int,
        accept: str,
    ) -> None:
        self.check_url(url)
        first = _parse(url)
        try:
            async with deadline, self._pool() as pool:
                await self._follow(pool, first, take, max_bytes, redirects, _headers(accept))
        except (*_FAILURES, RefusedAddress) as error:
            raise unreachable(first.host) from error

    async def _follow(
        self,
        pool: httpcore2.AsyncConnectionPool,
        first: httpx2.URL,
        take: Callable[[bytes], Awaitable[None]],
        max_bytes: int,
        redirects: int,
        headers: dict[str, str],
    ) -> None:
        url = first
        for _ in range(redirects + 1):
            self.check_url(str(url))
            sent = headers | (_credentials(first) if _origin(url) == _origin(first) else {})
            async with pool.stream("GET", _target(url), headers=list(sent.items())) as response:
                if response.status not in _REDIRECTS:
                    return await _read(response, take, max_bytes)
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
        name = canonical(host)
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


async def _read(response: httpcore2.Response, take: Callable[[bytes], Awaitable[None]], max_bytes: int) -> None:
    """Hands over the body of a plain 200. Raises ``BodyTooLarge``; ``httpcore2.RemoteProtocolError`` for all else."""
    encoding = _header(response, b"content-encoding").strip().lower()
    if response.status != 200 or encoding not in (b"", b"identity"):
        # Packed although asked not to: what it would unpack to is not counted anywhere.
        raise httpcore2.RemoteProtocolError(f"answered {response.status}, content-encoding {encoding!r}")
    length = _header(response, b"content-length")
    too_large = BodyTooLarge(f"The answer is larger than {max_bytes} bytes.")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    count = 0
    async for part in response.aiter_stream():
        count += len(part)
        if count > max_bytes:
            raise too_large
        await take(part)


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
