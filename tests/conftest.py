"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.model import ModelSpec
from tests.served import Server

# Before torch is imported. Demo networks are too small to share a forward among threads, and OpenMP's waiting threads
# burn the cores that other processes need: a busy machine makes such tests ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from pipelines.sd15 import StableDiffusion15


@pytest.fixture
def anyio_backend() -> str:
    """The server runs on asyncio alone."""
    return "asyncio"


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this run's demo checkpoints lie, each made when first asked for."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="session")
def sd15_folder(demo_folder: Path) -> Path:
    """The SD1.5 demo checkpoint."""
    from pipelines import demo
    from pipelines.quiet import quiet_libraries

    quiet_libraries()
    return demo.ensure("sd15", demo_folder)


@pytest.fixture(scope="session")
def sd15(sd15_folder: Path) -> StableDiffusion15:
    """Our pipeline on the demo checkpoint; tests take out the rows they put in."""
    import torch

    from pipelines.host import Host
    from pipelines.sd15 import StableDiffusion15

    spec = ModelSpec(id="sd15", family="sd15", folder=sd15_folder)
    return StableDiffusion15.load(spec, Host(device=torch.device("cpu"), slots=64))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers on data folders below ``tmp_path``; whatever still runs at the end is killed."""
    servers: list[Server] = []

    def start(name: str = "data", **environment: str) -> Server:
        servers.append(Server(tmp_path / name, **environment))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.kill()
