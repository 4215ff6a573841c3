"""Checkpoints of every published shape load whole; broken ones are refused with one sentence and without a path."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines import demo
from pipelines.checkpoint import Checkpoint
from pipelines.demo.vae import noisy
from pipelines.errors import BrokenCheckpoint
from pipelines.model import ModelSpec
from pipelines.shared import SharedComponents
from tests import originals

CPU = torch.device("cpu")
SKELETONS = Path(__file__).parents[3] / "configs" / "skeletons"
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    # diffusers and transformers log to stderr what pytest would otherwise attribute to the first test.
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def sd15(demos: Path, tmp_path: Path) -> Path:
    """A copy of the SD1.5 demo that a test may break."""
    return copy(demo.ensure("sd15", demos), tmp_path / "secret place" / "model")


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def classes() -> Mapping[str, Any]:
    import diffusers
    import transformers

    return {
        "unet": diffusers.UNet2DConditionModel,
        "transformer": diffusers.FluxTransformer2DModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
        "t5": transformers.T5EncoderModel,
        "tokenizer": transformers.CLIPTokenizer,
    }


def checkpoint(
    folder: Path, *, shared: SharedComponents | None = None, dtype: str = "float32", **spec: Any
) -> Checkpoint:
    model = ModelSpec(id="mine", family="sd15", folder=folder, **spec)
    return Checkpoint.open(model, dtype=getattr(torch, dtype), device=CPU, shared=shared)


def load(where: Checkpoint, component: str) -> Any:
    return where.load_module(component, classes()[component])


def same(one: Any, other: Any) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def edit(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# Folders as they are published.


def test_a_folder_loads_whole_in_its_dtype(sd15: Path) -> None:
    where = checkpoint(sd15, dtype="bfloat16")
    for component in ("unet", "vae", "text_encoder"):
        module = load(where, component)
        assert module.dtype == torch.bfloat16
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_module_can_have_a_dtype_of_its_own(sd15: Path) -> None:
    where = checkpoint(sd15, dtype="bfloat16")
    assert where.load_module("vae", classes()["vae"], dtype=torch.float32).dtype == torch.float32


def test_a_folder_of_fp16_variants_only_loads(sd15: Path) -> None:
    plain = {component: load(checkpoint(sd15), component) for component in ("unet", "vae", "text_encoder")}
    for file in list(sd15.rglob("*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    for component, module in plain.items():
        assert same(load(checkpoint(sd15), component), module)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_shards_load(sd15: Path, variant: str | None) -> None:
    whole = load(checkpoint(sd15), "unet")
    (sd15 / UNET).unlink()
    whole.save_pretrained(sd15 / "unet", max_shard_size="400KB", variant=variant)
    assert len(list((sd15 / "unet").glob("*.safetensors"))) > 1
    assert same(load(checkpoint(sd15), "unet"), whole)
    assert checkpoint(sd15).component_bytes()["unet"] == sum(value.nbytes for value in whole.state_dict().values())


def test_text_encoders_as_published_in_2022_load(sd15: Path) -> None:
    plain = load(checkpoint(sd15), "text_encoder")
    save_file(
        {f"text_model.{name}": value for name, value in load_file(sd15 / TEXT).items()}, sd15 / TEXT, {"format": "pt"}
    )
    assert same(load(checkpoint(sd15), "text_encoder"), plain)


def test_an_index_and_tokenizer_as_published_in_2022_load(sd15: Path) -> None:
    plain = checkpoint(sd15).load_tokenizer("tokenizer", classes()["tokenizer"])
    edit_json(sd15 / "model_index.json", feature_extractor=["transformers", "CLIPFeatureExtractor"])
    content = json.loads((sd15 / "tokenizer" / "tokenizer.json").read_text())["model"]
    (sd15 / "tokenizer" / "tokenizer.json").unlink()
    (sd15 / "tokenizer" / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = (one if isinstance(one, str) else " ".join(one) for one in content["merges"])
    (sd15 / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    where = checkpoint(sd15)
    where.check_class(("StableDiffusionPipeline",))
    tokenizer = where.load_tokenizer("tokenizer", classes()["tokenizer"])
    assert tokenizer("a photo of a blue Cat, x").input_ids == plain("a photo of a blue Cat, x").input_ids


# One file.


@pytest.mark.parametrize(
    ("name", "writer", "components"),
    [
        ("sd15", originals.stable_diffusion, ("unet", "vae", "text_encoder")),
        ("sd15-inpaint", originals.stable_diffusion, ("unet", "vae", "text_encoder")),
        ("sdxl", originals.sdxl, ("unet", "vae", "text_encoder", "text_encoder_2")),
        ("sdxl-inpaint", originals.sdxl, ("unet",)),
        ("flux", originals.flux, ("transformer",)),
        ("flux-schnell", originals.flux, ("transformer",)),
        ("flux-fill", originals.flux, ("transformer",)),
    ],
)
def test_a_single_file_over_a_skeleton_is_its_folder(
    name: str, writer: Callable[[Path, Path], Path], components: tuple[str, ...], demos: Path, tmp_path: Path
) -> None:
    folder = demo.ensure(name, demos)
    # One skeleton per family: what tells inpainting and distilled ones apart is read from the file.
    base = demo.ensure(name.partition("-")[0], demos)
    one = checkpoint(
        originals.skeleton(base, tmp_path / "skeleton"), file=writer(folder, tmp_path / "mine.safetensors")
    )
    for component in components:
        mine, theirs = load(one, component), load(checkpoint(folder), component)
        assert same(mine, theirs)
        if component in ("unet", "transformer"):
            assert mine.config.in_channels == theirs.config.in_channels
    assert set(one.component_bytes()) == set(components) or name == "sdxl-inpaint"


def test_a_single_file_draws_as_its_folder(demos: Path, tmp_path: Path) -> None:
    folder = demo.ensure("sdxl", demos)
    file = originals.sdxl(folder, tmp_path / "mine.safetensors")
    one = checkpoint(originals.skeleton(folder, tmp_path / "skeleton"), file=file)
    tokens = torch.arange(77)[None]
    with torch.inference_mode():
        mine, theirs = (load(where, "text_encoder_2")(tokens).text_embeds for where in (one, checkpoint(folder)))
    assert (mine - theirs).abs().max() < 1e-5


def test_comfyuis_prefix_before_flux_names_is_known(demos: Path, tmp_path: Path) -> None:
    folder = demo.ensure("flux", demos)
    file = originals.flux(folder, tmp_path / "mine.safetensors", prefix="model.diffusion_model.")
    one = checkpoint(originals.skeleton(folder, tmp_path / "skeleton"), file=file)
    assert same(load(one, "transformer"), load(checkpoint(folder), "transformer"))


def test_what_a_single_file_lacks_comes_from_the_folder(demos: Path, tmp_path: Path) -> None:
    folder = demo.ensure("flux", demos)
    one = checkpoint(folder, file=originals.flux(folder, tmp_path / "mine.safetensors"))
    assert same(load(one, "vae"), load(checkpoint(folder), "vae"))
    assert set(one.component_bytes()) == {"transformer", "vae", "text_encoder", "text_encoder_2"}


def test_a_schnell_file_takes_schnells_scheduler(demos: Path, tmp_path: Path) -> None:
    for name, shift in (("flux", 3.0), ("flux-schnell", 1.0)):
        file = originals.flux(demo.ensure(name, demos), tmp_path / f"{name}.safetensors")
        config = checkpoint(SKELETONS / "flux", file=file).scheduler_config()
        assert (config["shift"], config["use_dynamic_shifting"]) == (shift, name == "flux")


# One component's file over a folder.


@pytest.mark.parametrize("layout", ["diffusers", "original", "whole checkpoint"])
def test_a_unet_of_another_file_stands_over_a_base(layout: str, demos: Path, tmp_path: Path) -> None:
    turbo, base = demo.ensure("sdxl-turbo", demos), demo.ensure("sdxl", demos)
    file = tmp_path / "turbo.safetensors"
    match layout:
        case "diffusers":
            shutil.copy(turbo / UNET, file)
        case "original":
            originals.write(file, originals.unet(turbo))
        case _:
            originals.sdxl(turbo, file)
    over = checkpoint(base, components={"unet": file}, scheduler_options={"timestep_spacing": "trailing"})
    assert same(load(over, "unet"), load(checkpoint(turbo), "unet"))
    assert same(load(over, "vae"), load(checkpoint(base), "vae"))
    assert over.scheduler_config()["timestep_spacing"] == "trailing"
    assert over.component_bytes() == checkpoint(base).component_bytes()


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_vae_of_another_file_stands_over_a_base(layout: str, sd15: Path, tmp_path: Path) -> None:
    file = tmp_path / "vae.safetensors"
    if layout == "original":
        originals.write(file, originals.vae(sd15))
    else:
        shutil.copy(sd15 / "vae" / "diffusion_pytorch_model.safetensors", file)
    assert same(load(checkpoint(sd15, components={"vae": file}), "vae"), load(checkpoint(sd15), "vae"))


def test_a_distilled_unet_over_a_base_brings_its_guidance_input(demos: Path) -> None:
    lcm = demo.ensure("sd15-lcm", demos)
    over = checkpoint(demo.ensure("sd15", demos), components={"unet": lcm / UNET})
    assert load(over, "unet").config.time_cond_proj_dim == 256


# Sizes and sharing.


def test_weights_are_counted_in_the_dtype_they_will_have(sd15: Path) -> None:
    where = checkpoint(sd15, dtype="bfloat16")
    sizes = {
        component: sum(value.nbytes for value in load(where, component).state_dict().values())
        for component in ("unet", "vae", "text_encoder")
    }
    assert where.component_bytes() == sizes
    assert where.weight_bytes() == sum(sizes.values())
    assert checkpoint(sd15).weight_bytes() == 2 * sum(sizes.values())


def test_models_of_the_same_files_share_modules_while_one_holds_them(sd15: Path) -> None:
    shared = SharedComponents()
    first, second = (checkpoint(sd15, shared=shared) for _ in range(2))
    vae = load(first, "vae")
    assert load(second, "vae") is vae
    assert load(checkpoint(sd15, shared=shared, dtype="bfloat16"), "vae") is not vae
    del vae
    gc.collect()
    assert len(shared) == 0


def test_a_base_and_what_stands_over_it_share_all_but_the_unet(demos: Path) -> None:
    shared = SharedComponents()
    base, turbo = (demo.ensure(name, demos) for name in ("sdxl", "sdxl-turbo"))
    plain, over = checkpoint(base, shared=shared), checkpoint(base, shared=shared, components={"unet": turbo / UNET})
    assert load(plain, "text_encoder_2") is load(over, "text_encoder_2")
    assert load(plain, "unet") is not load(over, "unet")


def test_a_file_that_has_changed_is_loaded_anew(sd15: Path) -> None:
    shared = SharedComponents()
    before = load(checkpoint(sd15, shared=shared), "vae")
    noisy(sd15)
    assert load(checkpoint(sd15, shared=shared), "vae") is not before


# Skeletons.


@pytest.mark.parametrize(
    ("family", "component", "cls", "parameters"),
    [
        ("sd15", "unet", "unet", 859_520_964),
        ("sd15", "vae", "vae", 83_653_863),
        ("sd15", "text_encoder", "text_encoder", 123_060_480),
        ("sdxl", "unet", "unet", 2_567_463_684),
        ("sdxl", "vae", "vae", 83_653_863),
        ("sdxl", "text_encoder", "text_encoder", 123_060_480),
        ("sdxl", "text_encoder_2", "text_encoder_2", 694_659_840),
        ("flux", "transformer", "transformer", 11_901_408_320),
        ("flux", "vae", "vae", 83_819_683),
        ("flux", "text_encoder", "text_encoder", 123_060_480),
        ("flux", "text_encoder_2", "t5", 4_762_310_656),
    ],
)
def test_skeletons_describe_the_published_networks(family: str, component: str, cls: str, parameters: int) -> None:
    from accelerate import init_empty_weights

    config = json.loads((SKELETONS / family / component / "config.json").read_text())
    kind = classes()[cls]
    with init_empty_weights():
        module = kind.from_config(config) if "_class_name" in config else kind(kind.config_class.from_dict(config))
        module.tie_weights() if cls == "t5" else None
    unique = {id(parameter): parameter.numel() for parameter in module.parameters()}
    tied = config["vocab_size"] * config["d_model"] if cls == "t5" and len(unique) == 220 else 0
    assert sum(unique.values()) - tied == parameters


@pytest.mark.parametrize(("family", "tokenizer", "pad"), [("sd15", "tokenizer", 49407), ("sdxl", "tokenizer_2", 0)])
def test_skeletons_read_prompts_as_clip_does(family: str, tokenizer: str, pad: int) -> None:
    made = checkpoint(SKELETONS / family).load_tokenizer(tokenizer, classes()["tokenizer"])
    assert len(made) == 49408
    ids = made("A photo of a cat, 3D", padding="max_length", max_length=12).input_ids
    # From openai/CLIP's own tokenizer.
    assert ids == [49406, 320, 1125, 539, 320, 2368, 267, 274, 323, 49407, pad, pad]


def test_a_flux_file_alone_has_no_t5_vocabulary(demos: Path, tmp_path: Path) -> None:
    from transformers import T5TokenizerFast

    file = originals.flux(demo.ensure("flux", demos), tmp_path / "mine.safetensors")
    one = checkpoint(SKELETONS / "flux", file=file)
    with pytest.raises(BrokenCheckpoint, match="model mine: tokenizer_2 is missing"):
        one.load_tokenizer("tokenizer_2", T5TokenizerFast)
    with pytest.raises(BrokenCheckpoint, match=r"mine\.safetensors holds no vae in a known layout"):
        load(one, "vae")


# Broken ones.


def remove(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def shard(folder: Path, name: str) -> None:
    (folder / UNET).unlink()
    (folder / f"{UNET}.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))


def shorten(file: Path, name: str) -> None:
    edit(file, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))


def rename(file: Path, suffix: str) -> None:
    file.rename(file.with_suffix(suffix))


def header(file: Path, content: bytes, *, length: int | None = None, data: bytes = b"") -> None:
    file.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)


def entry(dtype: str = "F32", shape: tuple[int, ...] = (1,), offsets: tuple[int, int] = (0, 4)) -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


#: What is done to a good folder, and what the refusal says after "model mine: ".
BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"model_index\.json is missing"),
    "no component": (lambda at: shutil.rmtree(at / "unet"), r"unet/config\.json is missing"),
    "no configuration": (lambda at: (at / "unet/config.json").unlink(), r"unet/config\.json is missing"),
    "no weights": (lambda at: (at / UNET).unlink(), r"unet holds no weights"),
    "bad JSON": (lambda at: (at / "unet/config.json").write_text("{"), r"unet/config\.json cannot be read as JSON"),
    "no object": (lambda at: (at / "unet/config.json").write_text("[]"), r"unet/config\.json is not a JSON object"),
    "other pipeline": (
        lambda at: edit_json(at / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        "model_index.json is of a StableDiffusionXLPipeline, not StableDiffusionPipeline",
    ),
    "other network": (
        lambda at: edit_json(at / "unet/config.json", _class_name="UNet2DModel"),
        r"unet/config\.json is of a UNet2DModel, not UNet2DConditionModel",
    ),
    "cut off": (
        lambda at: truncate(at / UNET),
        r"diffusion_pytorch_model\.safetensors is cut off: \d+ bytes of \d+",
    ),
    "too long": (
        lambda at: (at / UNET).write_bytes((at / UNET).read_bytes() + b"x"),
        "diffusion_pytorch_model.safetensors is damaged: 1 bytes too long",
    ),
    "empty": (
        lambda at: (at / UNET).write_bytes(b""),
        r"diffusion_pytorch_model\.safetensors is cut off: it has 0 bytes",
    ),
    "cut in its header": (lambda at: header(at / UNET, b"{}", length=99), "is cut off within its header"),
    "long header": (lambda at: header(at / UNET, b"{}", length=10**9), "header would be longer than 100 MB"),
    "header no JSON": (lambda at: header(at / UNET, b"{x"), "its header is not JSON"),
    "header no object": (lambda at: header(at / UNET, b"[]"), "its header is not a JSON object"),
    "header without tensor": (lambda at: header(at / UNET, b'{"a": 1}'), "its header does not describe a"),
    "unknown dtype": (lambda at: header(at / UNET, entry("F4")), "holds a as F4, which is not read here"),
    "bad shape": (lambda at: header(at / UNET, entry(shape=(-1,))), "a has no proper shape"),
    "sizes differ": (lambda at: header(at / UNET, entry(shape=(2,)), data=bytes(4)), "a has 4 bytes, not 8"),
    "gap": (lambda at: header(at / UNET, entry(offsets=(4, 8)), data=bytes(8)), "tensors overlap or leave gaps"),
    "tensor missing": (
        lambda at: edit(at / UNET, lambda all: all.pop("mid_block.resnets.0.conv1.weight")),
        r"unet lacks mid_block\.resnets\.0\.conv1\.weight",
    ),
    "text encoder's tensor missing": (
        lambda at: edit(at / TEXT, lambda all: all.pop("final_layer_norm.weight")),
        r"text_encoder lacks (text_model\.)?final_layer_norm\.weight",
    ),
    "tensor of another shape": (
        lambda at: shorten(at / UNET, "conv_out.weight"),
        "unet .*conv_out.weight",
    ),
    "text encoder's tensor of another shape": (
        lambda at: shorten(at / TEXT, "final_layer_norm.weight"),
        "text_encoder .*final_layer_norm.weight",
    ),
    "other channels": (lambda at: edit_json(at / "unet/config.json", in_channels=9), "unet .*conv_in.weight"),
    "pickle": (
        lambda at: rename(at / UNET, ".bin"),
        r"a pickle, which can run code and is never opened: convert it to \.safetensors",
    ),
    "code in a configuration": (
        lambda at: edit_json(at / "unet/config.json", auto_map={"AutoModel": "mine.Model"}),
        r"unet/config\.json has auto_map, code of its own, which is never run",
    ),
    "code in the tokenizer": (
        lambda at: edit_json(at / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.T", None]}),
        r"tokenizer/tokenizer_config\.json has auto_map",
    ),
    "component of its own": (
        lambda at: edit_json(at / "model_index.json", unet=["my_unet", "MyUNet"]),
        r"model_index\.json wants code of its own for unet, which is never run",
    ),
    "pipeline of its own": (
        lambda at: edit_json(at / "model_index.json", _class_name=["pipeline", "Mine"]),
        r"model_index\.json is of a \['pipeline', 'Mine'\]",
    ),
    "code beside the weights": (
        lambda at: (at / "unet" / "my_unet.py").write_text("raise SystemExit"),
        r"unet brings code, my_unet\.py, which is never run",
    ),
    "no vocabulary": (lambda at: (at / "tokenizer/tokenizer.json").unlink(), "tokenizer has no vocabulary"),
    "no tokenizer": (lambda at: shutil.rmtree(at / "tokenizer"), "tokenizer is missing"),
    "bad tokenizer": (lambda at: (at / "tokenizer/tokenizer.json").write_text("{}"), "tokenizer cannot be loaded"),
    "scheduler without class": (
        lambda at: (at / "scheduler/scheduler_config.json").write_text("{}"),
        r"scheduler/scheduler_config\.json names no class",
    ),
    "shard missing": (
        lambda at: shard(at, "a-1.safetensors"),
        r"index\.json names a-1\.safetensors, which is missing",
    ),
    "shard outside the folder": (
        lambda at: shard(at, "../vae/diffusion_pytorch_model.safetensors"),
        r"index\.json names diffusion_pytorch_model\.safetensors, which is missing",
    ),
}


@pytest.mark.parametrize("defect", BREAKS)
def test_a_broken_folder_is_refused_with_one_sentence(defect: str, sd15: Path) -> None:
    spoil, said = BREAKS[defect]
    spoil(sd15)
    with pytest.raises(BrokenCheckpoint, match=f"model mine: .*{said}") as refusal:
        everything(checkpoint(sd15))
    text = str(refusal.value)
    assert "\n" not in text and len(text) < 300
    assert "secret" not in text and "place" not in text and "/tmp" not in text


def everything(where: Checkpoint) -> None:
    where.check_class(("StableDiffusionPipeline",))
    for component in ("unet", "vae", "text_encoder"):
        load(where, component)
    where.load_tokenizer("tokenizer", classes()["tokenizer"])
    where.scheduler_config()


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_single_pickle_is_refused_with_a_hint(suffix: str, sd15: Path, tmp_path: Path) -> None:
    file = tmp_path / f"mine{suffix}"
    file.write_bytes(b"\x80\x02")
    with pytest.raises(BrokenCheckpoint, match=rf"mine\{suffix} is a pickle, which can run code .* convert it"):
        checkpoint(sd15, file=file)


#: What is done to a good file in the original layout, and what the refusal says.
FILE_BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (remove, r"mine\.safetensors is missing"),
    "cut off": (truncate, r"mine\.safetensors is cut off"),
    "tensor missing": (
        lambda file: edit(file, lambda all: all.pop("model.diffusion_model.out.2.weight")),
        r"unet of mine\.safetensors lacks conv_out\.weight",
    ),
    "text encoder's tensor missing": (
        lambda file: edit(file, lambda all: all.pop("cond_stage_model.transformer.text_model.final_layer_norm.weight")),
        r"text_encoder of mine\.safetensors lacks final_layer_norm\.weight",
    ),
    "tensor of another shape": (
        lambda file: shorten(file, "model.diffusion_model.out.2.weight"),
        r"unet of mine\.safetensors has the wrong shape for conv_out\.weight",
    ),
    "no UNet": (
        lambda file: edit(file, lambda all: [all.pop(name) for name in list(all) if "diffusion_model" in name]),
        r"mine\.safetensors holds no unet in a known layout",
    ),
}


@pytest.mark.parametrize("defect", FILE_BREAKS)
def test_a_broken_file_is_refused_with_one_sentence(defect: str, sd15: Path, tmp_path: Path) -> None:
    spoil, said = FILE_BREAKS[defect]
    file = originals.stable_diffusion(sd15, tmp_path / "mine.safetensors")
    spoil(file)
    with pytest.raises(BrokenCheckpoint, match=f"model mine: .*{said}") as refusal:
        everything(checkpoint(originals.skeleton(sd15, tmp_path / "skeleton"), file=file))
    assert "/tmp" not in str(refusal.value)


def test_a_file_of_another_family_is_refused(demos: Path, tmp_path: Path) -> None:
    file = originals.sdxl(demo.ensure("sdxl", demos), tmp_path / "mine.safetensors")
    one = checkpoint(originals.skeleton(demo.ensure("sd15", demos), tmp_path / "skeleton"), file=file)
    with pytest.raises(BrokenCheckpoint, match=r"model mine: unet of mine\.safetensors"):
        load(one, "unet")


def test_a_component_of_another_kind_is_refused(sd15: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match=r"model\.safetensors holds no unet in a known layout"):
        checkpoint(sd15, components={"unet": sd15 / TEXT})
