"""./latentd pull of what is beside models: it lies where look-ups find it, under its id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.auxiliary import AuxiliaryKind, find_auxiliary
from tests.integration.hub import Repository
from tests.integration.puller import MIB, Puller, start_hubs, tensors

ADAPTERS = "h94/IP-Adapter"
LORA = "latent-consistency/lcm-lora-sdv1-5"
VAE = "stabilityai/sd-vae-ft-mse"
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def puller(tmp_path: Path) -> Iterator[Callable[..., Puller]]:
    """See ``start_hubs``."""
    yield from start_hubs(tmp_path)


def repositories(lora: bytes = tensors()) -> dict[str, Repository]:
    adapters = {
        "models/ip-adapter_sd15.bin": b"pickle",
        "models/ip-adapter_sd15.safetensors": tensors(seed=2),
        "models/image_encoder/config.json": b"{}",
        "models/image_encoder/model.safetensors": tensors(seed=3),
        "models/image_encoder/pytorch_model.bin": b"pickle",
        "sdxl_models/image_encoder/config.json": b"{}",
    }
    vae = {
        "config.json": b"{}",
        "diffusion_pytorch_model.safetensors": tensors(seed=4),
        "diffusion_pytorch_model.bin": b"pickle",
    }
    return {
        ADAPTERS: Repository(files=adapters),
        LORA: Repository(files={WEIGHTS: lora, "README.md": b"# x"}),
        VAE: Repository(files=vae),
    }


def lines(data: Path) -> list[str]:
    return sorted(str(file.relative_to(data)) for file in data.rglob("[!.]*") if file.is_file())


def test_files_lie_under_their_ids_where_look_ups_find_them(puller: Callable[..., Puller]) -> None:
    pull = puller(**repositories())
    assert pull("pull", "IP-Adapter_SD15", "lcm-lora-sdv1-5", "sd-vae-ft-mse")[0] == 0
    assert lines(pull.data) == [
        "image_encoders/vit-h/config.json",
        "image_encoders/vit-h/latentd.json",
        "image_encoders/vit-h/model.safetensors",
        "ip_adapters/ip-adapter_sd15.latentd.json",
        "ip_adapters/ip-adapter_sd15.safetensors",
        "loras/lcm-lora-sdv1-5.latentd.json",
        "loras/lcm-lora-sdv1-5.safetensors",
        "vaes/sd-vae-ft-mse/config.json",
        "vaes/sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
        "vaes/sd-vae-ft-mse/latentd.json",
    ]
    for kind, name, path in (
        (AuxiliaryKind.LORA, "lcm-lora-sdv1-5", "loras/lcm-lora-sdv1-5.safetensors"),
        (AuxiliaryKind.IP_ADAPTER, "ip-adapter_sd15", "ip_adapters/ip-adapter_sd15.safetensors"),
        (AuxiliaryKind.IMAGE_ENCODER, "vit-h", "image_encoders/vit-h"),
        (AuxiliaryKind.VAE, "sd-vae-ft-mse", "vaes/sd-vae-ft-mse"),
    ):
        assert find_auxiliary(pull.data, kind, name) == pull.data / path
    record = pull.record("loras/lcm-lora-sdv1-5.latentd.json")
    assert (record["hub"], record["commit"]) == (LORA, pull.hub.repositories[LORA].commit)
    assert record["files"]["lcm-lora-sdv1-5.safetensors"]["name"] == WEIGHTS
    told = {line.split()[0]: line.split()[1:] for line in pull("models")[1].splitlines() if line.strip()}
    assert told["lcm-lora-sdv1-5"] == ["lora", "pulled", "0.0", "MB", f"{LORA}@{record['commit'][:12]}", "openrail++"]
    assert told["vit-h"][:2] == ["image_encoder", "pulled"]
    assert told["vit-g"][:3] == ["image_encoder", "not", "here"]


def test_a_second_pull_asks_nothing_and_an_update_takes_the_files_place(puller: Callable[..., Puller]) -> None:
    pull = puller(**repositories())
    assert pull("pull", "lcm-lora-sdv1-5")[0] == 0
    pull.hub.push(LORA, {WEIGHTS: tensors(seed=7)})
    pull.hub.log.clear()
    assert pull("pull", "lcm-lora-sdv1-5") == (0, "lcm-lora-sdv1-5 was here already\n")
    assert pull.hub.log == []
    assert pull("pull", "lcm-lora-sdv1-5", "--update")[0] == 0
    file = pull.data / "loras/lcm-lora-sdv1-5.safetensors"
    assert file.read_bytes() == tensors(seed=7)
    assert pull.record("loras/lcm-lora-sdv1-5.latentd.json")["commit"] == pull.hub.repositories[LORA].commit


def test_a_killed_pull_of_one_file_goes_on_where_it_was(puller: Callable[..., Puller]) -> None:
    lora = tensors(24 * MIB)
    pull = puller(**repositories(lora))
    stage = pull.data / "loras/.lcm-lora-sdv1-5.part"
    pull.start_and_kill("pull", "lcm-lora-sdv1-5", stage=stage)
    assert find_auxiliary(pull.data, AuxiliaryKind.LORA, "lcm-lora-sdv1-5") is None
    pull.hub.log.clear()
    assert pull("pull", "lcm-lora-sdv1-5")[0] == 0
    assert next(line.split()[-1] for line in pull.hub.log if "bytes=" in line) == "bytes=20971520-"
    assert (pull.data / "loras/lcm-lora-sdv1-5.safetensors").read_bytes() == lora
    assert not stage.exists()


def test_what_is_published_as_a_pickle_only_is_told_how_to_convert(puller: Callable[..., Puller]) -> None:
    pull = puller()
    folder = pull.data / "upscalers"
    code, said = pull("pull", "realesr-general-x4v3")
    assert code == 1
    assert said.endswith(
        "fetch https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.5.0/realesr-general-x4v3.pth, run "
        f"./latentd convert realesr-general-x4v3.pth, and put realesr-general-x4v3.safetensors into {folder}\n"
    )
    folder.mkdir(parents=True)
    (folder / "realesr-general-x4v3.safetensors").write_bytes(tensors())
    assert pull("pull", "realesr-general-x4v3") == (0, "realesr-general-x4v3 was here already\n")


def test_a_file_of_the_operators_own_is_not_touched(puller: Callable[..., Puller]) -> None:
    pull = puller(**repositories())
    file = pull.data / "loras/lcm-lora-sdv1-5.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    expected = f"latentd: {file} was not pulled: move it away to pull lcm-lora-sdv1-5\n"
    assert pull("pull", "lcm-lora-sdv1-5") == (1, expected)
    assert file.read_bytes() == b"mine"
