"""The catalog: what is offered with and without weights, and errors in its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import InvalidRequest, UnknownModel
from server.catalog import Catalog, Source
from server.config import ROOT, ConfigError

FAMILIES = {"sd15": "pipelines.sd15:StableDiffusion15"}
MODEL = 'id = "toon"\nfamily = "sd15"\n'


def shipped(data: Path, default: str | None = None) -> Catalog:
    return Catalog.load(configs=ROOT / "configs", data=data, families=FAMILIES, default_model=default)


def load(tmp_path: Path, default: str | None = None, **files: str) -> Catalog:
    """``models_a`` becomes ``configs/models/a.toml``, ``demo_a`` and ``data_a`` likewise."""
    folders = {"models": "configs/models", "demo": "configs/demo", "data": "data/models"}
    for name, text in files.items():
        kind, _, stem = name.partition("_")
        folder = tmp_path / folders[kind]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.toml").write_text(text)
    return Catalog.load(configs=tmp_path / "configs", data=tmp_path / "data", families=FAMILIES, default_model=default)


def add_weights(data: Path, model: str) -> None:
    folder = data / "models" / model
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")


def test_without_weights_demo_models_stand_in_under_the_real_names(tmp_path: Path) -> None:
    catalog = shipped(tmp_path)
    assert [model.id for model in catalog.models()] == ["flux", "flux-schnell", "sd15", "sdxl"]
    flux = catalog.get("FluxDev")
    assert flux.demo == "sd15"
    assert flux.folder == tmp_path / "demo" / "sd15"
    assert flux.note == "demo model (no weights of flux here): drawn by a tiny SD1.5-shaped network"
    assert (flux.steps, flux.guidance, flux.width, flux.height) == (28, 3.5, 512, 512)


def test_weights_replace_the_stand_in(tmp_path: Path) -> None:
    add_weights(tmp_path, "sd15")
    model = shipped(tmp_path).get("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert (model.id, model.demo, model.note, model.folder) == ("sd15", None, None, tmp_path / "models" / "sd15")


def test_sources_are_kept_for_pulling(tmp_path: Path) -> None:
    hub = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert shipped(tmp_path).sources["sd15"] == Source(hub=hub, variant="fp16")


def test_operators_add_models_in_the_data_folder(tmp_path: Path) -> None:
    add_weights(tmp_path / "data", "toon")
    catalog = load(tmp_path, data_toon=MODEL + 'aliases = ["cartoon"]\n[limits]\nmax_samples = 2')
    model = catalog.get(" CARTOON ")
    assert (model.id, model.limits.max_samples, model.limits.max_side) == ("toon", 2, 1024)
    assert catalog.default() == model


def test_a_model_without_weights_and_stand_in_is_not_offered(tmp_path: Path) -> None:
    catalog = load(tmp_path, models_toon=MODEL + '[source]\nhub = "someone/toon"')
    assert catalog.models() == ()
    assert list(catalog.sources) == ["toon"]


@pytest.mark.parametrize("name", ["nothing", "", "../sd15", "sd15/../flux", "x" * 10_000])
def test_unknown_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownModel):
        shipped(tmp_path).get(name)


def test_default_model_is_configured_by_id_or_alias(tmp_path: Path) -> None:
    assert shipped(tmp_path, "flux-dev").default().id == "flux"


def test_without_default_the_choice_is_listed(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there are: flux, flux-schnell, sd15, sdxl") as caught:
        shipped(tmp_path).default()
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MODEL + "alias = []", "toon.toml: unknown key alias; did you mean aliases?"),
        (MODEL + "[defaults]\nwith = 64", "toon.toml: unknown key defaults.with; did you mean width?"),
        (MODEL + '[source]\nhup = "a/b"', "toon.toml: unknown key source.hup; did you mean hub?"),
        ('id = "toon"\nfamily = "sd51"', "toon.toml: unknown family 'sd51'; did you mean sd15?"),
        ('family = "sd15"', "toon.toml: id is missing"),
        ('id = "../x"\nfamily = "sd15"', "toon.toml: id = '../x' is not usable"),
        ('id = "a/../b"\nfamily = "sd15"', "toon.toml: id = 'a/../b' is not usable"),
        (MODEL + '[defaults]\nsteps = "30"', "toon.toml: defaults.steps = '30' is not usable"),
        (MODEL + "[defaults]\nwidth = true", "toon.toml: defaults.width = True is not usable"),
        (MODEL + "[defaults]\nwidth = 500", "defaults.width = 500 is not a multiple of 8 from 64 to 1024"),
        (MODEL + "[defaults]\nsteps = 151", "defaults.steps = 151 is more than max_steps = 150"),
        (MODEL + "[defaults]\nwidth = 64\nheight = 64\n[limits]\nmax_pixels = 64", "more than max_pixels = 64"),
        (MODEL + "[limits]\nmax_steps = 1000", "limits.max_steps = 1000 is not usable"),
    ],
)
def test_wrong_files_are_told_in_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, models_toon=text)
    assert expected in str(caught.value)


def test_two_models_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"b\.toml: the model name 'toon' is taken by .*a\.toml"):
        load(tmp_path, models_a=MODEL, data_b=MODEL)


def test_two_models_of_one_alias_are_refused(tmp_path: Path) -> None:
    first = MODEL + 'demo = "sd15"\naliases = ["Drawn"]'
    second = 'id = "drawn"\nfamily = "sd15"\ndemo = "sd15"'
    with pytest.raises(ConfigError, match="'Drawn' is taken by"):
        load(tmp_path, demo_a=first, demo_b=second)


def test_unknown_default_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="default_model = 'sd16' is no model; did you mean sd15"):
        shipped(tmp_path, "sd16")
