"""LoRAs per row: layouts, refusals, and forwards against a denoiser whose weights have them merged in."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.auxiliary import find_in
from pipelines.demo.clip import text_encoder
from pipelines.demo.transformer import flux_transformer
from pipelines.demo.unet import Wiring, sd15_unet, sdxl_unet
from pipelines.errors import InvalidRequest
from pipelines.flux_layout import originals
from pipelines.lora import Loras
from pipelines.lora_bank import MAX_IDLE, LoraBank, LoraStack
from pipelines.lora_bank import laid_over as over
from pipelines.lora_layers import adaptable, layer_names, unet_originals
from pipelines.lora_memory import LoraMemory
from pipelines.shared import SharedComponents

#: Layers of the SD1.5 UNet that a LoRA with convolutions changes: linear, 1 x 1, 3 x 3, strided, and of the timestep.
MIXED = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.0.attentions.0.proj_in",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.resnets.1.time_emb_proj",
    "up_blocks.1.resnets.0.conv1",
    "up_blocks.1.resnets.0.conv_shortcut",
    "down_blocks.0.downsamplers.0.conv",
    "time_embedding.linear_1",
)
FLUX = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_out.0",
    "transformer_blocks.1.ff_context.net.2",
    "transformer_blocks.1.norm1.linear",
    "single_transformer_blocks.0.attn.to_v",
    "single_transformer_blocks.1.proj_out",
)

Pairs = dict[str, tuple[Tensor, Tensor, float]]


def pairs(network: nn.Module, names: Sequence[str], *, rank: int = 4, seed: int = 1) -> Pairs:
    """layer -> (down, up in the axes of its kernel, alpha)."""
    source = torch.Generator().manual_seed(seed)
    layers = adaptable(network)
    made: Pairs = {}
    for name in names:
        outputs, inputs, *kernel = layers[name].weight.shape
        down = torch.randn(rank, inputs, *kernel, generator=source) / layers[name].weight[0].numel() ** 0.5
        made[name] = (down, torch.randn(outputs, rank, *[1] * len(kernel), generator=source) / rank, rank / 2)
    return made


def kohya(made: Pairs, prefix: str = "lora_unet_") -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, (down, up, alpha) in made.items():
        key = prefix + name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
    return tensors


def peft(made: Pairs, prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, (down, up, alpha) in made.items():
        tensors |= {f"{prefix}.{name}.lora_A.weight": down, f"{prefix}.{name}.lora_B.weight": up}
        tensors[f"{prefix}.{name}.alpha"] = torch.tensor(alpha)
    return tensors


def merged(network: nn.Module, *stack: tuple[Pairs, float]) -> Any:
    """A copy with W + strength x alpha / rank x up @ down."""
    copied = copy.deepcopy(network)
    layers = adaptable(copied)
    with torch.no_grad():
        for made, strength in stack:
            for name, (down, up, alpha) in made.items():
                change = up.flatten(1) @ down.flatten(1) * (strength * alpha / len(down))
                layers[name].weight += change.view_as(layers[name].weight)
    return copied


def loras(
    network: nn.Module,
    folder: Path,
    shared: SharedComponents | None = None,
    memory: LoraMemory | None = None,
    **encoders: nn.Module,
) -> Loras:
    flux = hasattr(network, "single_transformer_blocks")
    names = originals(2, 2) if flux else unet_originals(network)
    return Loras(
        network,
        names,
        encoders,
        device=torch.device("cpu"),
        find=lambda name: find_in(folder, name),
        shared=shared,
        memory=memory or LoraMemory(),
    )


def stack_of(ours: Loras, *wanted: tuple[str, float]) -> LoraStack:
    """For the denoiser."""
    stack = ours.lay(wanted, "sd15").stack
    assert stack is not None
    return stack


def sd15_inputs(entries: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(5)
    return {
        "sample": torch.randn(entries, 4, 16, 16, generator=source),
        "timestep": torch.linspace(1, 990, entries),
        "encoder_hidden_states": torch.randn(entries, 7, 32, generator=source),
    }


def flux_inputs(entries: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(5)
    return {
        "hidden_states": torch.randn(entries, 16, 64, generator=source),
        "timestep": torch.linspace(0.1, 1, entries),
        "guidance": torch.full((entries,), 3.5),
        "pooled_projections": torch.randn(entries, 32, generator=source),
        "encoder_hidden_states": torch.randn(entries, 7, 32, generator=source),
        "txt_ids": torch.zeros(7, 3),
        "img_ids": torch.cat((torch.zeros(16, 1), torch.arange(32.0).view(16, 2) % 4), dim=1),
    }


@torch.inference_mode()
def forward(network: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = network(**inputs, return_dict=False)[0]
    return out


def laid_over(ours: Loras, network: Any, inputs: Mapping[str, Tensor], slots: Sequence[int]) -> Tensor:
    with torch.inference_mode(), ours.bank.using(torch.tensor(slots, dtype=torch.int32)):
        return forward(network, inputs)


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def built(build: Callable[..., nn.Module], *arguments: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return build(*arguments, **options).requires_grad_(False)


@pytest.fixture
def unet() -> Any:
    return built(sd15_unet, Wiring(voice=1.0))


@pytest.fixture
def flux() -> Any:
    return built(flux_transformer, guidance_embeds=True)


def test_a_kohya_file_with_convolutions_is_as_good_as_merged(unet: Any, tmp_path: Path) -> None:
    made = pairs(unet, MIXED)
    save_file(kohya(made), tmp_path / "a.safetensors")
    expected = forward(merged(unet, (made, -1.5)), sd15_inputs(3))
    base = forward(unet, sd15_inputs(3))
    ours = loras(unet, tmp_path)
    slot = ours.bank.take(stack_of(ours, ("a", -1.5)))
    assert error(laid_over(ours, unet, sd15_inputs(3), [slot] * 3), expected) < 1e-4 < error(base, expected)


@pytest.mark.parametrize("layout", ["peft", "wrapped", "before peft", "processor"])
def test_all_layouts_say_the_same(unet: Any, tmp_path: Path, layout: str) -> None:
    made = pairs(unet, MIXED[:3])
    tensors = peft(made, "base_model.model.unet" if layout == "wrapped" else "unet")
    if layout == "before peft":
        tensors = {key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): tensors[key] for key in tensors}
    elif layout == "processor":
        tensors = {_of_a_processor(key): tensor for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    ours = loras(unet, tmp_path)
    found = stack_of(ours, ("a", 1.0)).parts[0][0]
    assert found.keys() == made.keys()
    for name, (down, up, alpha) in made.items():
        assert torch.equal(found[name].down, down) and torch.equal(found[name].up, up)
        assert found[name].scale == alpha / len(down)


def _of_a_processor(key: str) -> str:
    """….attn1.to_out.0.lora_A.weight -> ….attn1.processor.to_out_lora.down.weight."""
    layer, _, end = key.replace(".to_out.0.", ".to_out.").partition(".lora_")
    if not end:
        layer = layer.removesuffix(".alpha")
    place, _, name = layer.rpartition(".")
    matrix = {"A.weight": "_lora.down.weight", "B.weight": "_lora.up.weight", "": ".alpha"}[end]
    return f"{place}.processor.{name}{matrix}"


def test_flux_in_peft_layout_is_as_good_as_merged(flux: Any, tmp_path: Path) -> None:
    made = pairs(flux, FLUX)
    save_file(peft(made, "transformer"), tmp_path / "a.safetensors")
    expected = forward(merged(flux, (made, 0.8)), flux_inputs(3))
    base = forward(flux, flux_inputs(3))
    ours = loras(flux, tmp_path)
    slot = ours.bank.take(stack_of(ours, ("a", 0.8)))
    assert error(laid_over(ours, flux, flux_inputs(3), [slot] * 3), expected) < 1e-4 < error(base, expected)


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_flux_under_its_original_names_is_split(flux: Any, tmp_path: Path, prefix: str) -> None:
    source = torch.Generator().manual_seed(3)
    fused = {"double_blocks.1.img_attn.qkv": 3 * 64, "single_blocks.0.linear1": 7 * 64, "single_blocks.1.linear2": 64}
    tensors = {}
    for name, outputs in fused.items():
        key = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        inputs = 5 * 64 if name.endswith("linear2") else 64
        tensors[f"{key}.lora_down.weight"] = torch.randn(4, inputs, generator=source)
        tensors[f"{key}.lora_up.weight"] = torch.randn(outputs, 4, generator=source)
    save_file(tensors, tmp_path / "a.safetensors")
    found = stack_of(loras(flux, tmp_path), ("a", 1.0)).parts[0][0]
    attention = ("to_q", "to_k", "to_v")
    assert found.keys() == {
        *(f"transformer_blocks.1.attn.{name}" for name in attention),
        *(f"single_transformer_blocks.0.attn.{name}" for name in attention),
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.1.proj_out",
    }
    fused_up = next(tensor for key, tensor in tensors.items() if "linear1" in key and "up" in key)
    assert torch.equal(found["single_transformer_blocks.0.proj_mlp"].up, fused_up[3 * 64 :])


def test_fluxs_last_modulation_has_its_halves_swapped(flux: Any, tmp_path: Path) -> None:
    made = pairs(flux, ["norm_out.linear"])["norm_out.linear"]
    down, up, alpha = made
    original = {"final_layer.adaLN_modulation.1": (down, torch.cat(up.chunk(2)[::-1]), alpha)}
    save_file(kohya(original), tmp_path / "a.safetensors")
    ((part, _),) = stack_of(loras(flux, tmp_path), ("a", 1.0)).parts
    assert part.keys() == {"norm_out.linear"}
    assert torch.equal(part["norm_out.linear"].up, up)


def test_every_layer_of_sdxl_has_the_name_that_the_single_file_has() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    network = built(sdxl_unet, Wiring())
    names = unet_originals(network)
    layers = adaptable(network)
    # Of tensors under the original names diffusers makes tensors under its own.
    by_name = {name.replace(".", "_"): name for name in _original_keys(names)}
    marked = {
        f"model.diffusion_model.{by_name[name]}.{kind}": torch.full((1,), float(number))
        for number, name in enumerate(names)
        for kind in ("weight", "bias")
    }
    converted = convert_ldm_unet_checkpoint(marked, {**network.config})
    known = list(names)
    seen = {key.removesuffix(".weight"): known[int(value)] for key, value in converted.items() if "weight" in key}
    assert {name: (layer,) for layer, name in seen.items()} == names
    assert {layer for (layer,) in names.values()} == layers.keys()


def _original_keys(names: Mapping[str, object]) -> Iterator[str]:
    """The dots back in: numbers stand alone, and words that belong together are known."""
    import re

    together = (
        "input_blocks", "output_blocks", "middle_block", "time_embed", "label_emb", "in_layers", "out_layers",
        "emb_layers", "skip_connection", "transformer_blocks", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out",
    )  # fmt: skip
    for name in names:
        dotted = name
        for word in together:
            dotted = re.sub(rf"(?<![a-z]){word}(?![a-z])", word.replace("_", "~"), dotted)
        yield dotted.replace("_", ".").replace("~", "_")


def test_rows_with_different_stacks_share_a_forward(unet: Any, tmp_path: Path) -> None:
    one, two = pairs(unet, MIXED), pairs(unet, MIXED[2:6], rank=40, seed=2)
    save_file(kohya(one), tmp_path / "one.safetensors")
    save_file(kohya(two), tmp_path / "two.safetensors")
    inputs = sd15_inputs(5)
    base = forward(unet, inputs)
    stacked, single = merged(unet, (one, 0.5), (two, -1.0)), merged(unet, (one, 1.0))
    expected = [forward(network, inputs) for network in (unet, single, stacked)]
    ours = loras(unet, tmp_path)
    first = ours.bank.take(stack_of(ours, ("one", 1.0)))
    second = ours.bank.take(stack_of(ours, ("one", 0.5), ("two", -1.0)))
    out = laid_over(ours, unet, inputs, [0, first, second, 0, first])
    # Not nearly, but to the bit.
    assert torch.equal(out[[0, 3]], base[[0, 3]])
    assert error(out[[1, 4]], expected[1][[1, 4]]) < 1e-4
    assert error(out[2], expected[2][2]) < 1e-4
    for entry, slot in ((1, first), (2, second)):
        alone = laid_over(ours, unet, {name: value[entry : entry + 1] for name, value in inputs.items()}, [slot])
        assert error(out[entry], alone[0]) < 1e-4
    assert torch.equal(forward(unet, inputs), base)


def test_loading_a_hundred_stacks_leaves_the_base_as_it_was_and_memory_flat(unet: Any, tmp_path: Path) -> None:
    save_file(kohya(pairs(unet, MIXED)), tmp_path / "a.safetensors")
    inputs = sd15_inputs(2)
    base = forward(unet, inputs)
    ours = loras(unet, tmp_path)
    sizes = []
    for number in range(1, 101):
        slot = ours.bank.take(stack_of(ours, ("a", number / 100)))
        laid_over(ours, unet, inputs, [slot, 0])
        ours.bank.give(slot)
        sizes.append(ours.bank.bytes)
    assert len(ours.bank) == MAX_IDLE and sizes[-1] == sizes[MAX_IDLE]
    assert torch.equal(forward(unet, inputs), base)


def test_equal_stacks_are_one_slot_and_a_used_slot_is_never_taken(unet: Any, tmp_path: Path) -> None:
    save_file(kohya(pairs(unet, MIXED[:2])), tmp_path / "a.safetensors")
    ours = loras(unet, tmp_path)
    held = ours.bank.take(stack_of(ours, ("a", 1.0)))
    assert ours.bank.take(stack_of(ours, ("a", 1.0))) == held
    ours.bank.give(held)
    others = [ours.bank.take(stack_of(ours, ("a", 2.0 + number))) for number in range(2 * MAX_IDLE)]
    assert len({held, *others}) == 2 * MAX_IDLE + 1


def test_an_unused_bank_that_is_too_large_gives_its_memory_back(unet: Any, tmp_path: Path) -> None:
    made = pairs(unet, MIXED)
    save_file(kohya(made), tmp_path / "a.safetensors")
    ours = loras(unet, tmp_path, memory=LoraMemory(lambda: 1000))
    for _ in range(2):
        slot = ours.bank.take(stack_of(ours, ("a", 1.0)))
        out = laid_over(ours, unet, sd15_inputs(2), [slot, slot])
        ours.bank.give(slot)
        assert ours.bank.bytes == len(ours.bank) == 0
    assert error(out, forward(merged(unet, (made, 1.0)), sd15_inputs(2))) < 1e-4


def test_a_slot_that_could_not_be_written_is_not_lost(unet: Any, tmp_path: Path) -> None:
    class Faulty(LoraStack):
        def matrices(self, layer: str) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    small = pairs(unet, MIXED[:2])
    save_file(kohya(small), tmp_path / "small.safetensors")
    save_file(kohya(pairs(unet, MIXED)), tmp_path / "large.safetensors")
    ours = loras(unet, tmp_path)
    slot = ours.bank.take(stack_of(ours, ("small", 1.0)))
    stack = stack_of(ours, ("large", 1.0))
    with pytest.raises(torch.OutOfMemoryError):
        ours.bank.take(Faulty(key=stack.key, parts=stack.parts))
    # Layers that only the large one changes are adapted by now, and hold nothing.
    out = laid_over(ours, unet, sd15_inputs(2), [slot] * 2)
    assert error(out, forward(merged(unet, (small, 1.0)), sd15_inputs(2))) < 1e-4
    assert len(ours.bank) == 1
    assert ours.bank.take(stack) == slot + 1


def test_models_that_share_a_denoiser_share_its_bank(unet: Any, tmp_path: Path) -> None:
    shared = SharedComponents()
    one, other = loras(unet, tmp_path, shared), loras(unet, tmp_path, shared)
    assert one.bank is other.bank
    assert loras(built(sd15_unet, Wiring()), tmp_path, shared).bank is not one.bank


def test_a_denoiser_outlives_its_bank_without_its_hooks(unet: Any, tmp_path: Path) -> None:
    save_file(kohya(pairs(unet, MIXED)), tmp_path / "a.safetensors")
    ours = loras(unet, tmp_path)
    ours.bank.take(stack_of(ours, ("a", 1.0)))
    gone = weakref.ref(ours.bank)
    del ours
    gc.collect()
    assert gone() is None
    assert not any(layer._forward_hooks for layer in unet.modules())


def test_a_bank_keeps_no_dropped_denoiser(tmp_path: Path) -> None:
    network = built(sd15_unet, Wiring())
    save_file(kohya(pairs(network, MIXED)), tmp_path / "a.safetensors")
    ours = loras(network, tmp_path)
    ours.bank.take(stack_of(ours, ("a", 1.0)))
    gone = weakref.ref(network)
    gc.collect()
    gc.disable()
    try:
        del ours, network
        assert gone() is None
    finally:
        gc.enable()


# What is refused


def refusal(network: Any, folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    save_file(dict(tensors), folder / "mine.safetensors", metadata)
    with pytest.raises(InvalidRequest) as caught:
        stack_of(loras(network, folder), ("mine", 1.0))
    assert caught.value.field == "loras"
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_conv_in.dora_scale", "a DoRA"),
        ("unet.conv_in.lora_magnitude_vector.weight", "a DoRA"),
        ("lora_unet_conv_in.hada_w1_a", "a LoHa"),
        ("lora_unet_conv_in.lokr_w1", "a LoKr"),
        ("lora_unet_conv_in.lora_mid.weight", "a LoCon with Tucker decomposition"),
        ("lora_unet_conv_in.diff", "a file of full weight differences"),
    ],
)
def test_other_adapters_are_refused_by_their_kind(unet: Any, tmp_path: Path, key: str, kind: str) -> None:
    tensors = {**kohya(pairs(unet, MIXED[:1])), key: torch.zeros(4)}
    assert refusal(unet, tmp_path, tensors) == f"LoRA mine is {kind}, which is not supported"


def test_pefts_configuration_is_read(unet: Any, tmp_path: Path) -> None:
    made = pairs(unet, MIXED[:2])
    tensors = {key: tensor for key, tensor in peft(made, "unet").items() if not key.endswith("alpha")}
    options = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_k": 2}}
    metadata = {"lora_adapter_metadata": json.dumps(options)}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    found = stack_of(loras(unet, tmp_path), ("a", 1.0)).parts[0][0]
    assert [found[name].scale for name in MIXED[:2]] == [2.0, 0.5]
    dora = {"lora_adapter_metadata": json.dumps({"unet.use_dora": True})}
    assert refusal(unet, tmp_path, tensors, dora) == "LoRA mine is a DoRA, which is not supported"


def test_a_lora_of_another_family_is_refused_with_its_name(unet: Any, flux: Any, tmp_path: Path) -> None:
    sdxl = built(sdxl_unet, Wiring())
    attention = [name for name in adaptable(sdxl) if ".attn" in name]
    for other, tensors in ((unet, peft(pairs(flux, FLUX), "transformer")), (unet, kohya(pairs(sdxl, attention)))):
        assert refusal(other, tmp_path, tensors).startswith("LoRA mine is not for sd15")
    middle = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    assert refusal(unet, tmp_path, kohya(pairs(sdxl, [middle]))).endswith("has another size")


def test_a_lora_without_a_layer_of_the_model_is_refused(unet: Any, tmp_path: Path) -> None:
    made = {"text_model.encoder.layers.0.mlp.fc1": (torch.zeros(4, 4), torch.zeros(4, 4), 4.0)}
    expected = "LoRA mine is not for sd15, which has no layer text_model_encoder_layers_0_mlp_fc1"
    assert refusal(unet, tmp_path, peft(made, "text_encoder")) == expected
    assert refusal(unet, tmp_path, {"bundle_emb.a": torch.zeros(4)}) == "LoRA mine has nothing for sd15"


def test_what_is_no_lora_at_all_is_refused(unet: Any, tmp_path: Path) -> None:
    assert "conv_in.weight is no part of a LoRA" in refusal(unet, tmp_path, {"conv_in.weight": torch.zeros(4)})
    half = {"lora_unet_conv_in.lora_down.weight": torch.zeros(4, 4, 3, 3)}
    assert refusal(unet, tmp_path, half) == "LoRA mine is incomplete: conv_in has one matrix of two"


def test_layers_that_the_model_lacks_are_skipped_while_they_are_the_lesser_part(unet: Any, tmp_path: Path) -> None:
    made = pairs(unet, MIXED[:2])
    unknown = {f"mid_block.nothing.{number}": pairs(unet, MIXED[:1])[MIXED[0]] for number in range(3)}
    ours = loras(unet, tmp_path)
    for count in (0, 1, 2):
        known = dict(list(unknown.items())[:count])
        save_file({**kohya(made), **kohya(known)}, tmp_path / f"{count}.safetensors")
        laid = ours.lay([(f"{count}", 1.0)], "sd15")
        assert laid.stack is not None and laid.stack.parts[0][0].keys() == made.keys()
        skipped = f"LoRA {count}: {count} of its {2 + count} layers were skipped, which the model does not have."
        assert laid.warnings == ((skipped,) if count else ())
    assert "has no layer mid_block_nothing_0" in refusal(unet, tmp_path, {**kohya(made), **kohya(unknown)})


def test_textual_inversions_that_come_with_a_lora_are_named(unet: Any, tmp_path: Path) -> None:
    save_file({**kohya(pairs(unet, MIXED[:2])), "bundle_emb.a.b": torch.zeros(4)}, tmp_path / "a.safetensors")
    laid = loras(unet, tmp_path).lay([("a", 1.0)], "sd15")
    assert laid.warnings == ("LoRA a: its textual inversions were not used.",)


# Text encoders


@pytest.fixture
def clip() -> Any:
    return built(text_encoder, layers=2)


@pytest.fixture
def clip_2() -> Any:
    return built(text_encoder, layers=2, projection=True)


#: As files name them, and as transformers 5 does with and without a projection.
IN_TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.out_proj", "encoder.layers.1.mlp.fc1")


def text_parts(encoder: Any, *, seed: int) -> tuple[Pairs, Pairs]:
    """Under the encoder's own names, and under those of files."""
    inner = "text_model." if hasattr(encoder, "text_model") else ""
    made = pairs(encoder, [inner + name for name in IN_TEXT], seed=seed)
    return made, {"text_model." + name.removeprefix(inner): pair for name, pair in made.items()}


def older(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """….self_attn.q_proj.lora_A.weight -> ….self_attn.to_q_lora.down.weight; of mlp ….lora_linear_layer.down.weight."""
    renamed = {}
    for key, tensor in tensors.items():
        key = key.replace("lora_A", "lora_linear_layer.down").replace("lora_B", "lora_linear_layer.up")
        for name in ("q", "out"):
            key = key.replace(f"{name}_proj.lora_linear_layer", f"to_{name}_lora").replace(
                f".{name}_proj.", f".to_{name}."
            )
        renamed[key] = tensor
    return renamed


@torch.inference_mode()
def encoded(encoder: Any) -> Tensor:
    out: Tensor = encoder(torch.arange(10)[None].expand(3, -1)).last_hidden_state
    return out


@pytest.mark.parametrize("layout", ["kohya", "peft", "diffusers"])
def test_both_text_encoders_have_their_part_laid_over(
    unet: Any, clip: Any, clip_2: Any, tmp_path: Path, layout: str
) -> None:
    first, first_named = text_parts(clip, seed=1)
    second, second_named = text_parts(clip_2, seed=2)
    if layout == "kohya":
        tensors = {**kohya(first_named, "lora_te1_"), **kohya(second_named, "lora_te2_")}
    else:
        tensors = {**peft(first_named, "text_encoder"), **peft(second_named, "text_encoder_2")}
        tensors = older(tensors) if layout == "diffusers" else tensors
    save_file(tensors, tmp_path / "a.safetensors")
    ours = loras(unet, tmp_path, text_encoder=clip, text_encoder_2=clip_2)
    laid = ours.lay([("a", 0.7)], "sdxl")
    assert (laid.stack, laid.warnings) == (None, ())
    for encoder, made, name in ((clip, first, "text_encoder"), (clip_2, second, "text_encoder_2")):
        base, expected = encoded(encoder), encoded(merged(encoder, (made, 0.7)))
        with over([None, laid.texts[name], None]):
            mixed = encoded(encoder)
        assert torch.equal(mixed[[0, 2]], base[[0, 2]])
        assert error(mixed[1], expected[1]) < 1e-4 < error(base[1], expected[1])
        assert not ours.banks[name].users
        assert torch.equal(encoded(encoder), base)


def test_only_what_changes_a_text_encoder_is_in_its_key(unet: Any, clip: Any, tmp_path: Path) -> None:
    save_file(kohya(pairs(unet, MIXED[:2])), tmp_path / "picture.safetensors")
    save_file(kohya(text_parts(clip, seed=1)[1], "lora_te_"), tmp_path / "text.safetensors")
    ours = loras(unet, tmp_path, text_encoder=clip)
    assert not ours.lay([("picture", 1.0)], "sd15").texts
    assert not ours.lay([("text", 0.0)], "sd15").texts
    alone, both, weaker = (
        ours.lay(wanted, "sd15").texts
        for wanted in ([("text", 1.0)], [("picture", 0.5), ("text", 1.0)], [("text", 0.5)])
    )
    assert alone == both != weaker


def test_what_is_kept_of_all_networks_stays_below_one_limit(unet: Any, clip: Any, tmp_path: Path) -> None:
    save_file(
        {**kohya(pairs(unet, MIXED)), **kohya(text_parts(clip, seed=1)[1], "lora_te_")}, tmp_path / "a.safetensors"
    )
    roomy = LoraMemory()
    ours = loras(unet, tmp_path, memory=roomy, text_encoder=clip)
    laid = ours.lay([("a", 1.0)], "sd15")
    with over([laid.texts["text_encoder"]]):
        ours.bank.give(ours.bank.take(stack_of(ours, ("a", 1.0))))
    text, picture = ours.banks["text_encoder"].bytes, ours.bank.bytes
    assert roomy.bytes == text + picture > picture > text > 0
    tight = LoraMemory(lambda: picture)
    ours = loras(unet, tmp_path, memory=tight, text_encoder=clip)
    laid = ours.lay([("a", 1.0)], "sd15")
    with over([laid.texts["text_encoder"]]):
        held = ours.bank.take(stack_of(ours, ("a", 1.0)))
        # Both are used: what is drawn has its memory in any case.
        assert tight.bytes == text + picture
    ours.bank.give(held)
    assert 0 < tight.bytes <= picture


# Where files come from


@pytest.mark.parametrize("name", ["nothing", "../a", "folder/a", "", "*", "a.safetensors.safetensors"])
def test_names_that_lead_nowhere(unet: Any, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    for place in (tmp_path, folder):
        save_file(kohya(pairs(unet, MIXED[:1])), place / "a.safetensors")
    with pytest.raises(InvalidRequest, match="LoRA not found: "):
        stack_of(loras(unet, folder), (name, 1.0))


def test_a_file_is_found_once_it_is_complete_and_read_again_when_it_changes(unet: Any, tmp_path: Path) -> None:
    ours = loras(unet, tmp_path / "loras")
    assert find_in(tmp_path / "loras", "a") is None
    (tmp_path / "loras").mkdir()
    file = tmp_path / "loras" / "a.safetensors"
    save_file(kohya(pairs(unet, MIXED)), file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert find_in(tmp_path / "loras", "a") is None
    file.write_bytes(whole)
    before = stack_of(ours, ("a.safetensors", 1.0)).key
    assert before == stack_of(ours, ("a", 1.0)).key
    save_file(kohya(pairs(unet, MIXED[:2])), file)
    assert before != stack_of(ours, ("a", 1.0)).key


def test_names_of_layers_are_unambiguous(unet: Any, flux: Any) -> None:
    for network, others in ((unet, unet_originals(unet)), (flux, originals(2, 2))):
        layers = adaptable(network)
        names = layer_names(layers, others)
        assert all(names[layer.replace(".", "_")] == (layer,) for layer in layers)


def test_a_bank_that_nobody_asks_for_anything_changes_no_layer(unet: Any) -> None:
    bank = LoraBank(unet, torch.device("cpu"), LoraMemory())
    with bank.using(None):
        assert not any(layer._forward_hooks for layer in unet.modules())
