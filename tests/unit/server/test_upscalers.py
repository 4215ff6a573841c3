"""Upscalers are found by name among the operator's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.auxiliary import AuxiliaryKind
from pipelines.errors import UnknownModel
from server.catalog.upscalers import Upscalers


def having(*names: str) -> Upscalers:
    def find(kind: AuxiliaryKind, name: str) -> Path | None:
        assert kind is AuxiliaryKind.UPSCALER
        return Path(f"/data/{name}.safetensors") if name in names else None

    return Upscalers(find)


def test_a_file_is_found_by_its_name() -> None:
    spec = having("4x-Sharp").get("upscaler:4x-Sharp")
    assert (spec.id, spec.family, spec.file) == ("upscaler:4x-Sharp", "upscaler", Path("/data/4x-Sharp.safetensors"))


@pytest.mark.parametrize("name", ["RealESRGAN_x4plus", "realesrgan_X4PLUS", "ultra_resolution", "Ultra_Resolution"])
def test_published_names_are_known_in_any_case_with_and_without_their_weights(name: str) -> None:
    here, gone = having("RealESRGAN_x4plus").get(f"upscaler:{name}"), having().get(f"upscaler:{name}")
    assert here.id == gone.id == "upscaler:RealESRGAN_x4plus"
    assert (here.file, gone.file) == (Path("/data/RealESRGAN_x4plus.safetensors"), None)


@pytest.mark.parametrize("name", ["nothing", "9x", "0x", "", "../x"])
def test_other_names_are_unknown(name: str) -> None:
    with pytest.raises(UnknownModel):
        having("RealESRGAN_x4plus").get(f"upscaler:{name}")


@pytest.mark.parametrize(
    ("here", "factor", "chosen"),
    [
        (("RealESRGAN_x4plus", "RealESRGAN_x2plus"), 2, "RealESRGAN_x2plus"),
        (("RealESRGAN_x4plus", "RealESRGAN_x2plus"), 3, "RealESRGAN_x4plus"),
        (("RealESRGAN_x4plus", "RealESRGAN_x2plus"), 8, "RealESRGAN_x4plus"),
        (("RealESRGAN_x2plus",), 4, "RealESRGAN_x2plus"),
        (("realesr-general-x4v3", "RealESRNet_x4plus"), 2, "realesr-general-x4v3"),
        ((), 2, "RealESRGAN_x2plus"),
        ((), 4, "RealESRGAN_x4plus"),
    ],
)
def test_the_best_for_a_factor_is_one_whose_weights_are_here(here: tuple[str, ...], factor: int, chosen: str) -> None:
    spec = having(*here).get(f"upscaler:{factor}x")
    assert (spec.id, spec.file is None) == (f"upscaler:{chosen}", not here)
