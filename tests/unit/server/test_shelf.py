"""Weights that come and go while the server runs."""

from __future__ import annotations

import asyncio
import errno
import json
import struct
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.auxiliary import AuxiliaryKind
from pipelines.errors import InvalidRequest, UnknownModel
from pipelines.registry import FAMILIES
from server.catalog import Catalog
from server.config import ROOT
from server.errors import QueueFull, RefusedAddress, Unavailable
from server.net import Guard
from server.shelf import Addition, Shelf
from server.webhooks import Webhooks
from tests.receiver import receiving

pytestmark = pytest.mark.anyio


def weights(size: int = 100_000) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@asynccontextmanager
async def offering(body: bytes, gate: asyncio.Event | None = None) -> AsyncIterator[str]:
    """The URL of a file; half of it comes before ``gate`` opens."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.clear()
        # Who asked may be gone at any moment, also before it has asked.
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                half = len(body) // 2
                writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body[:half])
                await opened.wait()
                writer.write(body[half:])
                writer.close()
                await writer.wait_closed()
        finally:
            writer.close()
            ended.set()

    opened = gate or asyncio.Event()
    ended = asyncio.Event()
    ended.set()
    if gate is None:
        opened.set()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/toon.safetensors"
        opened.set()
        await ended.wait()


class Bench:
    """A shelf over an empty data folder and the shipped configurations."""

    def __init__(
        self,
        data: Path,
        pull: Callable[[str], None] | None = None,
        pull_vae: Callable[[str, str], None] = lambda name, hub: None,
    ) -> None:
        self.data = data
        self.catalog = Catalog.load(configs=ROOT / "configs", data=data, families=FAMILIES)
        guard = Guard(("127.0.0.1",))
        webhooks = Webhooks(guard, delays_s=())
        self.shelf = Shelf(data, guard, self.catalog, webhooks, pull or (lambda name: None), pull_vae)

    async def add(self, **values: Any) -> dict[str, str]:
        """What the webhook was told."""
        async with receiving("200 OK") as receiver, asyncio.timeout(10):
            self.shelf.add(Addition(**{"name": "toon", "webhook": receiver.url, **values}))
            await receiver.wait_for(1)
            told: dict[str, str] = json.loads(receiver.bodies[0])
            return told

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.data)) for path in self.data.rglob("*") if path.is_file())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.shelf.start()
    yield bench
    await bench.shelf.close()


async def test_a_lora_comes_whole(bench: Bench) -> None:
    async with offering(weights()) as url:
        told = await bench.add(url=url, kind=AuxiliaryKind.LORA)
    assert told == {"status": "success", "model_id": "toon", "message": "model loaded", "messege": "model loaded"}
    assert (bench.data / "loras" / "toon.safetensors").read_bytes() == weights()
    assert bench.files() == ["loras/toon.safetensors"]


async def test_a_model_is_offered_once_it_is_whole(bench: Bench) -> None:
    gate = asyncio.Event()
    async with offering(weights(), gate) as url:
        adding = asyncio.create_task(bench.add(url=url, family="sdxl"))
        await asyncio.sleep(0.05)
        with pytest.raises(UnknownModel):
            bench.catalog.get("toon")
        gate.set()
        await adding
    model = bench.catalog.get("toon")
    assert (model.family, model.file) == ("sdxl", bench.data / "models" / "toon.safetensors")


@pytest.mark.parametrize("body", [weights()[:-1], b"<html>not found</html>", b""])
async def test_what_is_not_whole_leaves_nothing(bench: Bench, body: bytes) -> None:
    async with offering(body) as url:
        told = await bench.add(url=url, family="sd15")
    assert told["status"] == "failed"
    assert told["message"] == "What the URL gave is no whole safetensors file"
    assert bench.files() == []


async def test_what_cannot_be_reached_is_told(bench: Bench) -> None:
    told = await bench.add(url="http://127.0.0.1:1/x", kind=AuxiliaryKind.VAE)
    assert (told["status"], told["message"]) == ("failed", "The address in the URL cannot be reached: 127.0.0.1")


async def test_there_must_be_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.shelf._RESERVE_BYTES", 2**62)
    async with offering(weights()) as url:
        told = await bench.add(url=url, kind=AuxiliaryKind.LORA)
    assert told["message"] == "The file is larger than the server has room for"
    assert bench.files() == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a" * 97, "a b", "x\n"])
async def test_a_name_leads_nowhere_else(bench: Bench, name: str) -> None:
    with pytest.raises(InvalidRequest, match="model_id must be"):
        bench.shelf.add(Addition(name=name, url="http://127.0.0.1:1/x", kind=AuxiliaryKind.LORA))


async def test_nothing_is_overwritten(bench: Bench) -> None:
    (bench.data / "loras" / "toon.safetensors").write_bytes(b"")
    taken = [("sdxl", None), ("FLUXDEV", None), ("florence-2-base", None), ("Toon", AuxiliaryKind.LORA)]
    for name, kind in taken:
        with pytest.raises(InvalidRequest, match="is here already"):
            bench.shelf.add(Addition(name=name, url="http://127.0.0.1:1/x", kind=kind, family="sdxl"))


async def test_private_addresses_are_refused_at_once(bench: Bench) -> None:
    with pytest.raises(RefusedAddress):
        bench.shelf.add(Addition(name="toon", url="http://10.0.0.1/x", kind=AuxiliaryKind.LORA))


async def test_asked_for_twice_it_comes_once_and_not_too_many_come(bench: Bench) -> None:
    async with offering(weights(), asyncio.Event()) as url:
        one = Addition(name="a0", url=url, kind=AuxiliaryKind.LORA)
        bench.shelf.add(one)
        for number in range(8):
            bench.shelf.add(replace(one, name=f"A{number}"))
        with pytest.raises(QueueFull):
            bench.shelf.add(replace(one, name="a8"))


async def test_closing_leaves_nothing_half_done(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.shelf.start()
    async with offering(weights(), asyncio.Event()) as url:
        bench.shelf.add(Addition(name="toon", url=url, kind=AuxiliaryKind.LORA))
        for _ in range(1_000):
            if not bench.files():
                await asyncio.sleep(0.01)
        assert len(bench.files()) == 1
        async with asyncio.timeout(10):
            await bench.shelf.close()
    assert bench.files() == []


async def test_a_full_disk_is_told_in_its_own_words(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("server.shelf._sync", fail)
    async with offering(weights()) as url:
        told = await bench.add(url=url, kind=AuxiliaryKind.LORA)
    assert told["message"] == "The server cannot store the file"
    assert bench.files() == []


async def test_a_repository_is_pulled_by_its_model_file(tmp_path: Path) -> None:
    pulled: list[str] = []

    def pull(name: str) -> None:
        pulled.append(name)
        assert own.catalog.find_configured(name) is not None
        (tmp_path / "models" / name).mkdir()

    own = Bench(tmp_path, pull)
    await own.shelf.start()
    told = await own.add(hub="owner/repo", family="sd15")
    assert (told["status"], pulled) == ("success", ["toon"])
    with pytest.raises(InvalidRequest, match="here already"):
        own.shelf.add(Addition(name="toon", hub="owner/repo", family="sd15"))
    configured = own.catalog.find_configured("toon")
    assert configured is not None and configured.source is not None
    assert (configured.family, configured.source.hub) == ("sd15", "owner/repo")


async def test_a_pull_keeps_no_server_from_ending(tmp_path: Path) -> None:
    began, end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def pull(name: str) -> None:
        # Python waits for every thread that is none of these.
        assert threading.current_thread().daemon
        loop.call_soon_threadsafe(began.set)
        end.wait(30)

    bench = Bench(tmp_path, pull)
    await bench.shelf.start()
    bench.shelf.add(Addition(name="toon", hub="owner/repo", family="sd15"))
    async with asyncio.timeout(10):
        await began.wait()
        await bench.shelf.close()
    assert bench.files() == []
    end.set()


async def test_a_pull_that_the_server_was_killed_in_can_be_asked_for_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.shelf.start()
    (tmp_path / "models" / "toon.toml").write_text('id = "toon"\nfamily = "sd15"\nsource.hub = "owner/repo"\n')
    for hub, family in (("owner/other", "sd15"), ("owner/repo", "sdxl")):
        with pytest.raises(InvalidRequest, match="here already"):
            bench.shelf.add(Addition(name="toon", hub=hub, family=family))
    assert (await bench.add(hub="owner/repo", family="sd15"))["status"] == "success"


async def test_a_model_of_the_checkout_is_not_pulled_by_clients(bench: Bench) -> None:
    configured = bench.catalog.find_configured("sd15-inpaint")
    assert configured is not None and configured.source is not None
    with pytest.raises(InvalidRequest, match="here already"):
        bench.shelf.add(Addition(name="sd15-inpaint", hub=configured.source.hub, family="sd15"))


async def test_a_pull_that_fails_leaves_no_model_file(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise Unavailable("owner/repo is not there")

    bench = Bench(tmp_path, fail)
    await bench.shelf.start()
    assert (await bench.add(hub="owner/repo", family="sd15"))["message"] == "owner/repo is not there"
    assert bench.files() == []


async def test_a_vae_is_pulled_as_a_folder(tmp_path: Path) -> None:
    pulled: list[tuple[str, str]] = []

    def pull_vae(name: str, hub: str) -> None:
        pulled.append((name, hub))
        folder = tmp_path / "vaes" / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(weights())

    bench = Bench(tmp_path, pull_vae=pull_vae)
    await bench.shelf.start()
    told = await bench.add(name="sharp", hub="owner/vae", kind=AuxiliaryKind.VAE)
    assert (told["status"], pulled) == ("success", [("sharp", "owner/vae")])
    for origin in ({"hub": "owner/vae"}, {"url": "http://127.0.0.1:1/x"}):
        with pytest.raises(InvalidRequest, match="here already"):
            bench.shelf.add(Addition(name="Sharp", kind=AuxiliaryKind.VAE, **origin))


# Removal


async def test_a_model_of_the_data_folder_can_be_removed(bench: Bench) -> None:
    async with offering(weights()) as url:
        await bench.add(url=url, family="sd15")
    await bench.shelf.remove("TOON")
    assert bench.files() == []
    with pytest.raises(UnknownModel):
        await bench.shelf.remove("toon")


async def test_a_folder_of_weights_goes_too_and_nothing_outside_does(bench: Bench) -> None:
    models = bench.data / "models"
    (models / "own").mkdir()
    (models / "own" / "model_index.json").write_text("{}")
    (models / "own.toml").write_text('id = "own"\nfamily = "sd15"\n')
    (bench.data / "kept").mkdir()
    (models / "far.toml").write_text('id = "far"\nfamily = "sd15"\nweights.folder = "../kept"\n')
    await bench.shelf.remove("own")
    await bench.shelf.remove("far")
    assert bench.files() == []
    assert (bench.data / "kept").is_dir()


async def test_what_the_checkout_describes_or_another_needs_stays(bench: Bench) -> None:
    models = bench.data / "models"
    (models / "own.toml").write_text('id = "own"\nfamily = "sd15"\n')
    (models / "child.toml").write_text('id = "child"\nfamily = "sd15"\nweights.base = "own"\n')
    with pytest.raises(InvalidRequest, match="Another model needs the weights of own"):
        await bench.shelf.remove("own")
    (models / "own.safetensors").write_bytes(weights())
    (models / "lone.toml").write_text('id = "lone"\nfamily = "sd15"\nweights.file = "own.safetensors"\n')
    for more in ('weights.base = "sd15"\nweights.components.unet = "own.safetensors"\n',
                 'weights.base = "sd15"\nweights.loras = ["own.safetensors"]\n'):  # fmt: skip
        (models / "child.toml").write_text(f'id = "child"\nfamily = "sd15"\n{more}')
        with pytest.raises(InvalidRequest, match="Another model needs the weights of lone"):
            await bench.shelf.remove("lone")
    (models / "own").mkdir()
    (models / "child.toml").write_text('id = "child"\nfamily = "sd15"\nweights.file = "own/x.safetensors"\n')
    with pytest.raises(InvalidRequest, match="Another model needs the weights of own"):
        await bench.shelf.remove("own")
    with pytest.raises(InvalidRequest, match="sdxl is part of the server's configuration"):
        await bench.shelf.remove("sdxl")
