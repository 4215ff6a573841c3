"""The catalog: what is offered with and without weights, and errors in its files."""

from __future__ import annotations

import importlib
import json
import logging
import struct
from pathlib import Path

import pytest

from pipelines.demo import BUILDERS
from pipelines.errors import InvalidRequest, UnknownModel
from pipelines.registry import FAMILIES as BUILT
from pipelines.registry import LOOKING
from pipelines.request import Task
from server.catalog import Catalog, Resolved, Source
from server.config import ROOT, ConfigError

FAMILIES = {"sd15": "pipelines.sd15:StableDiffusion15"}
MODEL = 'id = "toon"\nfamily = "sd15"\n'
IDS = """dreamshaper-8-lcm florence-2-base florence-2-large flux flux-fill flux-schnell sd15 sd15-inpaint
    sdxl sdxl-inpaint sdxl-lcm sdxl-lightning sdxl-turbo""".split()


class Clock:
    """Stands still unless told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def shipped(data: Path, default: str | None = None, realtime: str | None = None, editor: str | None = None) -> Catalog:
    return Catalog.load(
        configs=ROOT / "configs",
        data=data,
        families=BUILT,
        default_model=default,
        realtime_model=realtime,
        edit_model=editor,
    )


def load(tmp_path: Path, default: str | None = None, clock: Clock | None = None, **files: str) -> Catalog:
    """``models_a`` becomes ``configs/models/a.toml``, ``demo_a`` and ``data_a`` likewise."""
    folders = {"models": "configs/models", "demo": "configs/demo", "data": "data/models"}
    for name, text in files.items():
        kind, _, stem = name.partition("_")
        folder = tmp_path / folders[kind]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.toml").write_text(text)
    return Catalog.load(
        configs=tmp_path / "configs",
        data=tmp_path / "data",
        families=FAMILIES,
        default_model=default,
        clock=clock or Clock(),
    )


def add_weights(data: Path, model: str) -> None:
    folder = data / "models" / model
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")


def safetensors(size: int = 8) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def drop(tmp_path: Path, name: str, content: str | bytes) -> Path:
    file = tmp_path / "data" / "models" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def ids(catalog: Catalog) -> list[str]:
    return [model.id for model in catalog.models()]


def test_without_weights_demo_models_stand_in_under_the_real_names(tmp_path: Path) -> None:
    catalog = shipped(tmp_path)
    assert ids(catalog) == IDS
    flux = catalog.get("FluxDev")
    assert (flux.family, flux.demo, flux.folder) == ("flux", "flux", tmp_path / "demo" / "flux")
    assert flux.note == "demo model (no weights of flux here): drawn by a tiny Flux-shaped network"
    assert (flux.steps, flux.guidance, flux.width, flux.limits.multiple) == (28, 3.5, 512, 16)


def test_every_stand_in_has_a_builder_and_the_family_and_tasks_of_its_model(tmp_path: Path) -> None:
    catalog = shipped(tmp_path)
    for model in catalog.models():
        configured = catalog.configured[model.id]
        assert model.demo in BUILDERS
        assert model.family == configured.family
        assert model.tasks == (frozenset() if model.family in LOOKING else frozenset(map(Task, configured.tasks)))
        assert model.scheduler_options == configured.scheduler
        assert (model.steps, model.guidance, model.scheduler) == (
            configured.defaults.steps,
            configured.defaults.guidance,
            configured.defaults.scheduler,
        )


def test_every_shipped_model_says_where_it_comes_from(tmp_path: Path) -> None:
    catalog = shipped(tmp_path)
    assert list(catalog.configured) == IDS
    for model in catalog.configured.values():
        assert model.source is not None
        assert model.source.revision == "main"
        assert model.source.files
        assert model.source.licence
        assert catalog.find_configured(model.source.hub) is model
    gated = [id_ for id_, model in catalog.configured.items() if model.source and model.source.gated]
    assert gated == ["flux", "flux-fill"]


def test_the_readme_lists_the_shipped_models(tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Models\n")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in section.splitlines() if "| `" in line]
    told = {row[0]: row[1:] for row in rows if len(row) == 4}
    real = {}
    for id_, model in shipped(tmp_path).configured.items():
        assert model.source is not None
        over = f", over `{model.weights.base}" if model.weights.base else ""
        gated = ", gated" if model.source.gated else ""
        real[id_] = [model.family, model.source.hub + over, f"{model.source.licence}{gated}"]
    assert told == real


def test_weights_replace_the_stand_in(tmp_path: Path) -> None:
    add_weights(tmp_path, "sd15")
    model = shipped(tmp_path).get("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert (model.id, model.demo, model.note, model.folder) == ("sd15", None, None, tmp_path / "models" / "sd15")


def test_schnell_draws_for_flux_while_only_its_weights_are_here(tmp_path: Path) -> None:
    add_weights(tmp_path, "flux-schnell")
    catalog = shipped(tmp_path)
    schnell = catalog.get("flux-schnell")
    warning = "The weights of flux are not here: drawn by flux-schnell."
    assert catalog.resolve("Flux-Dev") == Resolved(model=schnell, warnings=(warning,))
    assert catalog.resolve("flux-schnell") == Resolved(model=schnell)
    add_weights(tmp_path, "flux")
    flux = shipped(tmp_path).resolve("flux-dev")
    assert (flux.model.id, flux.model.demo, flux.warnings) == ("flux", None, ())


def test_without_any_weights_flux_is_its_own_stand_in(tmp_path: Path) -> None:
    assert shipped(tmp_path).resolve("flux").model.demo == "flux"


def test_a_model_over_a_base_takes_the_base_and_its_own_component(tmp_path: Path) -> None:
    data = tmp_path / "data"
    add_weights(data, "sdxl")
    assert shipped(data).get("sdxl-lightning").demo == "sdxl"
    unet = drop(tmp_path, "sdxl-lightning/sdxl_lightning_4step_unet.safetensors", safetensors())
    model = shipped(data).get("sdxl-lightning")
    assert (model.demo, model.folder, model.components) == (None, data / "models" / "sdxl", {"unet": unet})
    assert (model.scheduler, model.scheduler_options) == ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"})


def test_a_model_that_is_a_lora_over_a_base_has_no_weights_of_its_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    add_weights(data, "sdxl")
    stand_in = shipped(data).get("sdxl-lcm")
    assert (stand_in.demo, stand_in.loras) == (
        "sdxl-lcm",
        (data / "demo" / "sdxl-lcm" / "pytorch_lora_weights.safetensors",),
    )
    lora = drop(tmp_path, "sdxl-lcm/pytorch_lora_weights.safetensors", safetensors())
    model, base = shipped(data).get("sdxl-lcm"), shipped(data).get("sdxl")
    assert (model.demo, model.folder, model.components) == (None, base.folder, {})
    assert (model.loras, base.loras, model.scheduler) == ((lora,), (), "LCMScheduler")


def test_operators_add_models_in_the_data_folder(tmp_path: Path) -> None:
    add_weights(tmp_path / "data", "toon")
    catalog = load(tmp_path, data_toon=MODEL + 'aliases = ["cartoon"]\n[limits]\nmax_samples = 2')
    model = catalog.get(" CARTOON ")
    assert (model.id, model.limits.max_samples, model.limits.max_side) == ("toon", 2, 1024)
    assert catalog.default() == model


def test_a_dropped_folder_is_offered_without_a_restart(tmp_path: Path) -> None:
    catalog = load(tmp_path)
    with pytest.raises(UnknownModel):
        catalog.get("toon")
    add_weights(tmp_path / "data", "cartoons")
    drop(tmp_path, "toon.toml", MODEL + 'weights.folder = "cartoons"\n')
    assert catalog.get("toon").folder == tmp_path / "data" / "models" / "cartoons"


def test_a_dropped_file_is_offered_once_it_is_copied(tmp_path: Path) -> None:
    catalog = load(tmp_path)
    whole = safetensors(1000)
    drop(tmp_path, "toon.toml", MODEL + 'weights.file = "toon.safetensors"\n')
    for length in (0, 4, 20, len(whole) - 1):
        drop(tmp_path, "toon.safetensors", whole[:length])
        with pytest.raises(UnknownModel):
            catalog.get("toon")
    file = drop(tmp_path, "toon.safetensors", whole)
    model = catalog.get("toon")
    assert (model.file, model.folder) == (file, tmp_path / "configs" / "skeletons" / "sd15")
    file.unlink()
    catalog.get("toon")  # looked at once a second


def test_what_is_offered_is_looked_at_once_a_second(tmp_path: Path) -> None:
    clock = Clock()
    catalog = load(tmp_path, clock=clock)
    add_weights(tmp_path / "data", "toon")
    drop(tmp_path, "toon.toml", MODEL)
    assert ids(catalog) == []
    clock.now += 1.0
    assert ids(catalog) == ["toon"]
    (tmp_path / "data/models/toon/model_index.json").unlink()
    assert ids(catalog) == ["toon"]
    clock.now += 1.0
    assert ids(catalog) == []


def test_a_broken_dropped_file_is_logged_once_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "server.catalog")
    clock = Clock()
    add_weights(tmp_path / "data", "sd15")
    catalog = load(tmp_path, clock=clock, data_sd15='id = "sd15"\nfamily = "sd15"', data_toon="id = ")
    broken = ("b", MODEL + "aliass = []"), ("c", 'id = "d"\nfamily = "sd15"\nweights.base = "e"'), ("f", MODEL + "x")
    for stem, text in broken:
        drop(tmp_path, f"{stem}.toml", text)
        for _ in range(3):
            clock.now += 1.0
            assert ids(catalog) == ["sd15"]
    found = [record.getMessage() for record in caplog.records]
    assert [message.split(".toml: ")[0].rpartition("/")[2] for message in found] == ["toon", "b", "c", "f"]
    assert "c.toml: weights.base = 'e' is no model" in found[2]
    drop(tmp_path, "toon.toml", MODEL)
    add_weights(tmp_path / "data", "toon")
    assert catalog.get("toon").id == "toon"


def test_a_checkout_file_that_breaks_while_the_server_runs_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    add_weights(tmp_path / "data", "toon")
    catalog = load(tmp_path, clock=clock, models_toon=MODEL)
    (tmp_path / "configs/models/toon.toml").write_text("id = ")
    clock.now += 1.0
    assert ids(catalog) == ["toon"]
    assert "models not read again" in caplog.text


def test_a_model_without_weights_and_stand_in_is_not_offered(tmp_path: Path) -> None:
    catalog = load(tmp_path, models_toon=MODEL + '[source]\nhub = "someone/toon"')
    assert catalog.models() == ()
    assert catalog.configured["toon"].source == Source(hub="someone/toon")


def test_a_model_of_a_family_that_is_not_built_is_known_and_not_offered(tmp_path: Path) -> None:
    add_weights(tmp_path / "data", "toon")
    catalog = load(tmp_path, models_toon='id = "toon"\nfamily = "flux"')
    assert (ids(catalog), list(catalog.configured)) == ([], ["toon"])


def test_every_built_family_can_be_imported() -> None:
    for target in BUILT.values():
        assert importlib.util.find_spec(target.partition(":")[0]) is not None


@pytest.mark.parametrize("name", ["nothing", "", "../sd15", "sd15/../flux", "x" * 10_000])
def test_unknown_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownModel):
        shipped(tmp_path).get(name)


def test_default_model_is_configured_by_id_or_alias(tmp_path: Path) -> None:
    assert shipped(tmp_path, "flux-dev").default().id == "flux"


def test_the_realtime_model_is_the_default_unless_it_is_set(tmp_path: Path) -> None:
    catalog = shipped(tmp_path, "sdxl", "sdxl-turbo")
    assert catalog.resolve(realtime=True).model.id == "sdxl-turbo"
    assert catalog.resolve().model.id == "sdxl"
    assert shipped(tmp_path, "sdxl").resolve(realtime=True).model.id == "sdxl"


def test_edits_are_drawn_by_a_model_that_only_inpaints_with_weights_if_there_are_any(tmp_path: Path) -> None:
    assert Task.INPAINT in shipped(tmp_path).resolve_editor().model.tasks
    add_weights(tmp_path, "sdxl")
    assert shipped(tmp_path).resolve_editor().model.id == "sdxl"
    add_weights(tmp_path, "sdxl-inpaint")
    assert shipped(tmp_path).resolve_editor().model.id == "sdxl-inpaint"
    assert shipped(tmp_path, editor="sd15").resolve_editor().model.id == "sd15"
    with pytest.raises(ConfigError, match="edit_model = 'nothing' is no model"):
        shipped(tmp_path, editor="nothing")


def test_pictures_are_described_by_the_model_of_the_setting_else_by_one_with_weights(tmp_path: Path) -> None:
    assert shipped(tmp_path).resolve_captioner().model.id == "florence-2-base"
    folder = tmp_path / "models" / "florence-2-large"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert shipped(tmp_path).resolve_captioner().model.id == "florence-2-large"
    named = Catalog.load(
        configs=ROOT / "configs", data=tmp_path, families={*BUILT, "florence2"}, caption_model="florence-2-base"
    )
    assert named.resolve_captioner().model.id == "florence-2-base"
    with pytest.raises(InvalidRequest, match="no model that can describe"):
        Catalog(()).resolve_captioner()


def test_without_default_the_only_model_with_weights_draws(tmp_path: Path) -> None:
    add_weights(tmp_path, "sdxl-turbo")
    assert shipped(tmp_path).default().id == "sdxl-turbo"
    add_weights(tmp_path, "sdxl")
    with pytest.raises(InvalidRequest, match="A model is needed"):
        shipped(tmp_path).default()


def test_without_default_or_weights_the_sd15_demo_draws(tmp_path: Path) -> None:
    chosen = shipped(tmp_path).default()
    assert (chosen.id, chosen.demo is not None) == ("sd15", True)


def test_without_default_the_choice_is_listed(tmp_path: Path) -> None:
    add_weights(tmp_path, "sdxl-turbo")
    add_weights(tmp_path, "sdxl")
    with pytest.raises(InvalidRequest, match="there are: dreamshaper-8-lcm, flux, flux-fill, flux-sch") as caught:
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
        (MODEL + 'tasks = ["upscale"]', "toon.toml: tasks.0 = 'upscale' is not usable"),
        (MODEL + '[defaults]\nscheduler = "EulerScheduler"', "no such scheduler; did you mean"),
        (MODEL + 'weights.file = "toon.ckpt"', ".ckpt files can run code when they are opened; convert it to .safet"),
        (MODEL + 'weights.components.unet = "u.bin"', ".bin files can run code"),
        (MODEL + 'weights.file = "toon.gguf"', "must be a .safetensors file"),
        (MODEL + 'weights.foldr = "x"', "toon.toml: unknown key weights.foldr; did you mean folder?"),
        (MODEL + 'weights.base = "sdxl"', "toon.toml: weights.base = 'sdxl' is no model"),
        (MODEL + 'weights.base = "toon"\nweights.file = "x.safetensors"', "base stands alone"),
        (MODEL + 'weights.loras = ["a.bin"]', "weights.loras"),
        (MODEL + 'weights.base = "toon"', "weights.base = 'toon' has a base itself"),
        (MODEL + 'fallback = "moon"', "toon.toml: fallback = 'moon' is no model; did you mean toon?"),
    ],
)
def test_wrong_files_are_told_in_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, models_toon=text)
    assert expected in str(caught.value)


def test_two_models_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"b\.toml: the model name 'toon' is taken by .*a\.toml"):
        load(tmp_path, models_a=MODEL, models_b=MODEL)


def test_a_dropped_file_does_not_take_the_name_of_a_shipped_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = load(tmp_path, models_a=MODEL, data_b=MODEL + 'note = "mine"')
    assert catalog.configured["toon"].note is None
    assert "b.toml: the model name 'toon' is taken by" in caplog.text


def test_two_models_of_one_alias_are_refused(tmp_path: Path) -> None:
    first = MODEL + 'demo = "sd15"\naliases = ["Drawn"]'
    second = 'id = "drawn"\nfamily = "sd15"\ndemo = "sd15"'
    with pytest.raises(ConfigError, match=r"b\.toml: the model name 'drawn' is taken by .*a\.toml"):
        load(tmp_path, demo_a=first, demo_b=second)


def test_unknown_default_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="default_model = 'sd16' is no model; did you mean sd15"):
        shipped(tmp_path, "sd16")


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_original_name_of_florence_is_the_native_copy(tmp_path: Path, size: str) -> None:
    model = shipped(tmp_path).get(f"microsoft/Florence-2-{size}")
    assert (model.id, model.family, model.tasks) == (f"florence-2-{size}", "florence2", frozenset())


def test_a_model_that_looks_at_pictures_draws_for_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "florence-2-base"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    catalog = shipped(tmp_path)
    assert catalog.get("florence-2-base").demo is None
    assert catalog.default().id == "sd15"
    # Nor does it take the demo's safety checker away.
    assert catalog.checker() is not None
    add_weights(tmp_path, "sdxl")
    assert shipped(tmp_path).default().id == "sdxl"
