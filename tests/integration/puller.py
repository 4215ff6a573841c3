"""``./latentd pull`` as a user calls it, and repositories in the shape of the real ones."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from tests.integration.hub import Hub, Repository

ROOT = Path(__file__).resolve().parents[2]
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MIB = 1024 * 1024


def tensors(size: int = 64, seed: int = 1) -> bytes:
    """A safetensors file with one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes([seed]) * size


def sd15_files(unet: bytes = tensors()) -> dict[str, bytes]:
    """What the real repository has, in kind: more formats and precisions than one needs."""
    return {
        ".gitattributes": b"x",
        "README.md": b"# x",
        "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
        "v1-5-pruned.safetensors": tensors(seed=9),
        "scheduler/scheduler_config.json": b"{}",
        "tokenizer/merges.txt": b"a b",
        "tokenizer/vocab.json": b"{}",
        "text_encoder/config.json": b"{}",
        "text_encoder/model.safetensors": tensors(seed=2),
        "text_encoder/pytorch_model.bin": b"pickle",
        "feature_extractor/preprocessor_config.json": b"{}",
        "safety_checker/config.json": b"{}",
        "safety_checker/model.fp16.safetensors": tensors(seed=3),
        "safety_checker/model.safetensors": tensors(128, 3),
        "safety_checker/pytorch_model.bin": b"pickle",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/diffusion_pytorch_model.safetensors": tensors(128),
        "unet/diffusion_pytorch_model.non_ema.safetensors": tensors(128, 4),
        "unet/diffusion_pytorch_model.fp16.safetensors": unet,
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.fp16.safetensors": tensors(seed=5),
        "vae/diffusion_pytorch_model.safetensors": tensors(128, 6),
    }


#: Of the above: fp16 where there is one, else what there is.
NEEDED = [
    "latentd.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
]


#: What the safety checker is, once pulled.
CHECKER = [
    "feature_extractor/preprocessor_config.json",
    "latentd.json",
    "safety_checker/config.json",
    "safety_checker/model.fp16.safetensors",
]


def sdxl_files() -> dict[str, bytes]:
    more = {
        "tokenizer_2/vocab.json": b"{}",
        "text_encoder_2/config.json": b"{}",
        "text_encoder_2/model.fp16.safetensors": tensors(seed=7),
    }
    return sd15_files() | more


class Puller:
    """``latentd pull`` in a process of its own."""

    def __init__(self, hub: Hub, data: Path) -> None:
        self.hub = hub
        self.data = data

    def start(self, *arguments: str, token: str | None = None) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LATENTD_"))}
        environment |= {"HF_ENDPOINT": self.hub.address, "HF_HOME": str(self.data.parent / "hf"), "COLUMNS": "200"}
        # Proxies of this machine know nothing of a server in this process.
        environment |= {"NO_PROXY": "*", "no_proxy": "*"} | ({"HF_TOKEN": token} if token else {})
        command = [sys.executable, "-W", "error", "-m", "server", *arguments, "--data", str(self.data)]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __call__(self, *arguments: str, token: str | None = None) -> tuple[int, str]:
        """Exit code, and what was said: errors if there are any."""
        process = self.start(*arguments, token=token)
        out, err = process.communicate(timeout=60)
        return process.returncode, err or out

    def files(self, name: str, kind: str = "models") -> list[str]:
        folder = self.data / kind / name
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())

    def record(self, path: str) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads((self.data / path).read_text()))

    def commit(self, model: str) -> str:
        return str(self.record(f"models/{model}/latentd.json")["commit"])

    def start_and_kill(self, *arguments: str, stage: Path) -> None:
        """As if the power went off after 20 MiB of a file."""
        self.hub.stall_after = 21 * MIB
        process = self.start(*arguments)
        assert self.hub.stalled.wait(60)
        end = time.monotonic() + 30
        # huggingface_hub hands over 10 MiB at a time.
        while not any(file.stat().st_size >= 20 * MIB for file in stage.rglob("*.part")):
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.hub.stall_after = None


def start_hubs(tmp_path: Path) -> Iterator[Callable[..., Puller]]:
    """Starts hubs with repositories, by name, and pulls from them into ``tmp_path``."""
    hubs: list[Hub] = []

    def start(**repositories: Repository) -> Puller:
        hubs.append(Hub(**repositories))
        return Puller(hubs[-1], tmp_path / "data")

    yield start
    for hub in hubs:
        hub.close()
