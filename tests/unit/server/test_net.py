"""Outbound HTTP: addresses, spellings, resolvers that lie, and a real server on the loopback."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpcore2
import pytest

from server.addresses import Allowed, is_public
from server.errors import BodyTooLarge, RefusedAddress
from server.net import Answer, Guard, _checked

REFUSED = """
0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 100.100.100.200 127.0.0.1 127.255.255.255
169.254.0.0 169.254.169.254 172.16.0.0 172.31.255.255 192.0.0.1 192.0.0.255 192.0.2.0 192.0.2.255 192.88.99.0
192.88.99.255 192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.0 198.51.100.255 203.0.113.0
203.0.113.255 224.0.0.0 239.255.255.255 240.0.0.0 255.255.255.255 168.63.129.16
:: ::1 ::127.0.0.1 ::ffff:ffff ::ffff:0:0 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b:: 64:ff9b::7f00:1 64:ff9b:1::
64:ff9b:1:ffff::1 100:: 100::1 2001:: 2001:0:ffff::1 2001:db8:: 2001:db8:ffff::1 2002:: 2002:7f00:1::
fc00:: fdff:ffff::1 fe80:: fe80::1%eth0 febf::1 fec0:: feff::1 ff00:: ff02::1
2a00:1450::5efe:7f00:1 2a00:1450::200:5efe:a00:1
""".split()

PUBLIC = """
1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255 169.255.0.0
172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0
198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255 168.63.129.15
168.63.129.17 8.8.8.8 2001:200::1 2001:db7:ffff::1 2001:db9::1 2003::1 2606:4700::1111 2a00:1450::5eff:7f00:1
""".split()

SPELLINGS = [
    "http://2130706433/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://0x7f.1/",
    "http://0x7f000001/",
    "http://127.1/",
    "http://0/",
    "http://127.0.0.1./",
    "http://[::ffff:127.0.0.1]/",
    "http://[::]/",
    "http://[fe80::1%25eth0]/",
    "http://①②⑦.⓪.⓪.①/",
    "http://１２７.0.0.1/",
    "http://%31%32%37.0.0.1/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1%00.example.com/",
    "http://1.2.3.4.5/",
    "http://localhost/",
    "http://a.LocalHost./",
    "http://ex ample.com/",
    "http:///path",
    "http://",
    "",
    "http://example.com:22/",
    "http://x.example:99999/",
    "https://8.8.8.8:9/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "//example.com/",
    "http://" + "a" * 70_000,
    "http://\ud800/",
]


@asynccontextmanager
async def receiver(
    answer: str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on 127.0.0.1: its port, and what it has received."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        received.append(head + await reader.readexactly(length))
        writer.write(answer.encode())
        await writer.drain()
        if answer:
            writer.close()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], received


class Resolver:
    """Answers with each list in turn, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def post(guard: Guard, url: str, timeout_s: float = 5.0) -> Answer:
    return await guard.post(url, b"{}", {"Content-Type": "application/json"}, timeout_s=timeout_s)


@pytest.mark.parametrize("address", REFUSED)
def test_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_their_neighbours_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("url", SPELLINGS)
def test_hopeless_urls_are_refused_at_submit(url: str) -> None:
    with pytest.raises(RefusedAddress):
        Guard().check_url(url)


@pytest.mark.parametrize(
    "url",
    ["http://example.com/", "https://EXAMPLE.com.:8443/a?b", "http://bücher.example/", "http://8.8.8.8:8080/"],
)
def test_public_urls_pass(url: str) -> None:
    Guard().check_url(url)


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        ("hooks.internal", ["http://hooks.internal:9000/", "http://Hooks.Internal./"], ["http://x.hooks.internal:9/"]),
        ("hooks.internal:9000", ["http://hooks.internal:9000/"], ["http://hooks.internal:9001/"]),
        ("localhost", ["http://localhost:3000/"], ["http://127.0.0.1:3000/"]),
        ("10.0.0.0/8", ["http://10.1.2.3:9/", "http://0x0a000001/"], ["http://11.0.0.1:9/", "http://192.168.0.1/"]),
        ("192.168.1.20/24", ["http://192.168.1.7/"], ["http://192.168.2.7/"]),
        ("192.168.1.20:9000", ["http://192.168.1.20:9000/"], ["http://192.168.1.20/", "http://192.168.1.21:9000/"]),
        ("[fd00::1]:9000", ["http://[fd00::1]:9000/"], ["http://[fd00::1]/"]),
        ("fd00::/8", ["http://[fd00::1]:9000/"], ["http://[fc00::1]/"]),
    ],
)
def test_listed_hosts_are_reached_on_any_port(entry: str, allowed: list[str], refused: list[str]) -> None:
    guard = Guard([entry])
    for url in allowed:
        guard.check_url(url)
    for url in refused:
        with pytest.raises(RefusedAddress):
            guard.check_url(url)


@pytest.mark.parametrize("entry", ["", "http://a", "1.2.3.4/33", "a b", "host:port"])
def test_malformed_entries_are_errors(entry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Allowed.parse(entry)


@pytest.mark.anyio
async def test_body_and_headers_arrive_and_the_status_comes_back() -> None:
    async with receiver("HTTP/1.1 429 Slow\r\nRetry-After: 7\r\ncontent-length: 0\r\n\r\n") as (port, received):
        answer = await post(Guard(["127.0.0.1"]), f"http://us%65r:p%40ss@127.0.0.1:{port}/hook?token=1")
    assert answer == Answer(status=429, retry_after="7")
    head, _, body = received[0].partition(b"\r\n\r\n")
    lines = head.lower().splitlines()
    assert body == b"{}"
    assert head.startswith(b"POST /hook?token=1 HTTP/1.1\r\n")
    assert {b"content-type: application/json", b"accept-encoding: identity", b"user-agent: latentd"} <= set(lines)
    assert b"authorization: basic " + base64.b64encode(b"user:p@ss").lower() in lines
    assert f"host: 127.0.0.1:{port}".encode() in lines


@pytest.mark.anyio
async def test_redirects_are_not_followed() -> None:
    async with receiver() as (port, received):
        location = f"HTTP/1.1 307 There\r\nlocation: http://127.0.0.1:{port}/\r\ncontent-length: 0\r\n\r\n"
        async with receiver(location) as (first, _):
            answer = await post(Guard(["127.0.0.1"]), f"http://127.0.0.1:{first}/")
    assert answer.status == 307
    assert received == []


@pytest.mark.anyio
async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as (proxy, seen), receiver() as (port, received):
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        await post(Guard(["127.0.0.1"]), f"http://127.0.0.1:{port}/")
    assert (len(seen), len(received)) == (0, 1)


@pytest.mark.anyio
async def test_a_name_is_resolved_once_and_the_vetted_address_is_dialled() -> None:
    resolve = Resolver(["127.0.0.2"], ["127.0.0.1"])
    async with receiver() as (port, received):
        with pytest.raises(RefusedAddress):
            await post(Guard(["127.0.0.2"], resolve=resolve), f"http://rebind.example:{port}/")
    assert (resolve.asked, received) == (1, [])


@pytest.mark.anyio
async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async with receiver() as (port, received):
        guard = Guard(["pair.example"], resolve=Resolver(["127.0.0.2", "127.0.0.1"]))
        assert (await post(guard, f"http://pair.example:{port}/")).status == 200
    assert len(received) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("answers", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["8.8.8.8", "::1"], [], ["fe80::1%2"]])
async def test_one_bad_answer_refuses_the_name(answers: list[str]) -> None:
    with pytest.raises(RefusedAddress):
        await post(Guard(resolve=Resolver(answers)), "http://mixed.example/")


@pytest.mark.anyio
async def test_refused_and_unreachable_read_the_same() -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    texts = set()
    for guard in (
        Guard(resolve=Resolver(["127.0.0.1"])),
        Guard(["a.example"], resolve=Resolver(["127.0.0.1"])),
        Guard(resolve=unknown),
    ):
        with pytest.raises(RefusedAddress) as caught:
            # Nothing listens on port 80 here or the name is refused: the caller cannot tell.
            await post(guard, "http://a.example:80/")
        texts.add(str(caught.value))
    assert texts == {"The address in the URL cannot be reached: a.example"}


@pytest.mark.anyio
async def test_a_receiver_that_never_answers_runs_into_the_deadline() -> None:
    async with receiver("") as (port, received):
        with pytest.raises(RefusedAddress) as caught:
            await post(Guard(["127.0.0.1"]), f"http://127.0.0.1:{port}/", timeout_s=0.2)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert len(received) == 1


# Pictures


def http(status: str, body: bytes = b"", **headers: str) -> bytes:
    """An answer whose length is told."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Site:
    """A server on 127.0.0.1 that answers each path with given bytes, then holds the connection or closes it."""

    def __init__(self, hold: bool = False) -> None:
        self.answers: dict[str, bytes] = {}
        self.heads: list[str] = []
        self.port = 0
        self._hold = hold

    def url(self, path: str = "/", login: str = "") -> str:
        return f"http://{login}127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.heads.append(head)
        with suppress(ConnectionError):
            writer.write(self.answers[head.split(" ", 2)[1]])
            await writer.drain()
            if self._hold:
                await reader.read()
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def site(hold: bool = False, **answers: bytes) -> AsyncIterator[Site]:
    """Paths are given without their slash; more can be added to ``answers``."""
    running = Site(hold)
    running.answers = {f"/{path}": answer for path, answer in answers.items()}
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    async with server:
        running.port = server.sockets[0].getsockname()[1]
        yield running


LOCAL = Guard(["127.0.0.1"])
UNREACHABLE = "The address in the URL cannot be reached: 127.0.0.1"


async def refused(guard: Guard, url: str, *, timeout_s: float = 5.0) -> BaseException | None:
    """Refused with the one text that tells nothing; the cause, which is for the log."""
    with pytest.raises(RefusedAddress) as caught:
        await guard.get(url, max_bytes=100, timeout_s=timeout_s)
    assert str(caught.value) == UNREACHABLE
    return caught.value.__cause__


@pytest.mark.anyio
async def test_a_body_is_fetched_with_plain_headers() -> None:
    async with site(a=http("200 OK", b"x" * 100)) as there:
        assert await LOCAL.get(there.url("/a"), max_bytes=100, accept="image/png") == b"x" * 100
    lines = there.heads[0].lower().splitlines()
    assert lines[0] == "get /a http/1.1"
    assert sorted(line for line in lines[1:] if line) == [
        "accept-encoding: identity",
        "accept: image/png",
        f"host: 127.0.0.1:{there.port}",
        "user-agent: latentd",
    ]


@pytest.mark.anyio
async def test_three_redirects_are_followed_and_four_are_not() -> None:
    async with site(end=http("200 OK", b"here"), c=http("307 x", Location="/end")) as there:
        there.answers["/b"] = http("302 x", Location=there.url("/c"))
        there.answers["/a"] = http("301 x", Location="b")
        there.answers["/over"] = http("308 x", Location="/a")
        assert await LOCAL.get(there.url("/a"), max_bytes=9) == b"here"
        await refused(LOCAL, there.url("/over"))


@pytest.mark.anyio
async def test_a_redirect_into_the_network_is_refused_like_any_address() -> None:
    async with site(secret=http("200 OK", b"credentials")) as inside, site() as outside:
        guard = Guard([f"127.0.0.1:{outside.port}", "rebind.example"], resolve=Resolver(["10.0.0.1"]))
        for target in (inside.url("/secret"), f"http://inner.example:{inside.port}/secret", "http://0x7f.1/secret"):
            outside.answers["/hop"] = http("302 x", Location="/hop2")
            outside.answers["/hop2"] = http("302 x", Location=target)
            await refused(guard, outside.url("/hop"))
    assert inside.heads == []


@pytest.mark.anyio
async def test_every_hop_resolves_for_itself_and_dials_what_was_judged() -> None:
    resolve = Resolver(["127.0.0.1"], ["10.0.0.1"])
    async with site(secret=http("200 OK", b"credentials")) as there:
        there.answers["/hop"] = http("302 x", Location=f"http://rebind.example:{there.port}/secret")
        guard = Guard(["127.0.0.1"], resolve=resolve)
        with pytest.raises(RefusedAddress, match="rebind"):
            await guard.get(f"http://rebind.example:{there.port}/hop", max_bytes=100)
    assert (resolve.asked, len(there.heads)) == (2, 1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "location", ["", "file:///etc/passwd", "ftp://127.0.0.1/", "http://[", "//", "http://a:99999/"]
)
async def test_a_redirect_that_leads_nowhere_is_refused(location: str) -> None:
    async with site(a=http("302 x", Location=location)) as there:
        await refused(Guard(["127.0.0.1"]), there.url("/a"))


@pytest.mark.anyio
async def test_a_redirect_may_hold_bytes_beyond_ascii() -> None:
    async with site(a=http("302 x", Location="/ü%20".encode().decode("latin-1"))) as there:
        there.answers["/%C3%BC%20"] = http("200 OK", b"here")
        assert await LOCAL.get(there.url("/a"), max_bytes=9) == b"here"


@pytest.mark.anyio
async def test_credentials_stay_with_the_origin_they_were_given_for() -> None:
    async with site(end=http("200 OK")) as other, site() as first:
        first.answers["/a"] = http("302 x", Location="/b")
        first.answers["/b"] = http("302 x", Location=other.url("/end", login="planted:there@"))
        await LOCAL.get(first.url("/a", login="user:pass@"), max_bytes=9)
    sent = ["authorization: basic" in head.lower() for head in (*first.heads, *other.heads)]
    assert sent == [True, True, False]


@pytest.mark.anyio
async def test_bytes_are_counted_whatever_length_is_told() -> None:
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n" + b"x" * 101
    told = b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n"
    async with site(hold=True, endless=endless, chunked=chunked, told=told) as there:
        for path in there.answers:
            with pytest.raises(BodyTooLarge, match="larger than 100 bytes"):
                await LOCAL.get(there.url(path), max_bytes=100)


@pytest.mark.anyio
async def test_a_drip_runs_into_the_deadline_of_the_whole() -> None:
    async with site(hold=True, a=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", b=b"HTTP/1.1 2") as there:
        for path in there.answers:
            assert isinstance(await refused(LOCAL, there.url(path), timeout_s=0.2), TimeoutError)


@pytest.mark.anyio
async def test_anything_but_a_plain_200_reads_the_same_and_shows_nothing() -> None:
    answers = {
        "missing": http("404 Not Found", b"internal details"),
        "failed": http("500 No", b"internal details"),
        "empty": http("204 No"),
        "unmodified": http("304 Same"),
        "partial": http("206 Part", b"x"),
        "gzip": http("200 OK", b"\x1f\x8b", Content_Encoding="gzip"),
        "both": http("200 OK", b"x", Content_Encoding="identity, br"),
        "short": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        "junk": b"\x00\x01\x02\r\n\r\n",
        "silent": b"",
    }
    async with site() as there:
        there.answers = {f"/{path}": answer for path, answer in answers.items()}
        for path in there.answers:
            await refused(LOCAL, there.url(path))


class Stream(httpcore2.AsyncNetworkStream):
    """Connected to ``peer``, whatever was dialled."""

    def __init__(self, peer: tuple[str, int] | None) -> None:
        self.peer = peer
        self.closed = False

    def get_extra_info(self, info: str) -> Any:
        return self.peer if info == "server_addr" else None

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.anyio
@pytest.mark.parametrize("peer", [("10.0.0.1", 80), None])
async def test_a_connection_to_another_peer_is_closed(peer: tuple[str, int] | None) -> None:
    stream = Stream(peer)
    with pytest.raises(httpcore2.ConnectError):
        await _checked(stream, "8.8.8.8")
    assert stream.closed


@pytest.mark.anyio
async def test_a_connection_to_the_vetted_peer_is_kept() -> None:
    stream = Stream(("2606:4700:0:0::1111", 80))
    assert await _checked(stream, "2606:4700::1111") is stream
