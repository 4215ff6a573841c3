"""The demo checkpoints of the SDXL family, as diffusers folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.demo import clip, unet, vae, weights
from pipelines.demo.unet import Wiring
from pipelines.demo.weights import save, seeded

#: As published with SDXL base 1.0.
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
#: As published with SDXL Turbo.
TURBO_SCHEDULER = {
    **SCHEDULER,
    "_class_name": "EulerAncestralDiscreteScheduler",
    "_diffusers_version": "0.24.0.dev0",
    "timestep_spacing": "trailing",
}

SEED = 2
#: Two levels of attention are not as loud as SD1.5's three, and sizes are heard less than prompts.
VOICE = 0.06
#: Widths of the two text encoders: what reads a single file tells them apart by it.
WIDTHS = (32, 48)
#: SDXL's second encoder has 32 layers; fewer than 10 look like another model to what reads a single file.
SECOND_LAYERS = 11
#: The file's name on the hub.
LCM_LORA = "pytorch_lora_weights.safetensors"
LORA_RANK = 4


def build(folder: Path) -> None:
    """Text to image; the same bytes every time, for one version of torch and diffusers."""
    _build(folder, "StableDiffusionXLPipeline", Wiring(voice=VOICE), SCHEDULER)


def build_inpaint(folder: Path) -> None:
    """The UNet reads mask and masked picture: 9 channels."""
    wiring = Wiring(known=0.6, voice=VOICE)
    _build(folder, "StableDiffusionXLInpaintPipeline", wiring, SCHEDULER, in_channels=unet.INPAINT_CHANNELS)


def build_turbo(folder: Path) -> None:
    """Draws in one step without guidance."""
    # One step scales what is left of the noise by its deviation, 14.6.
    wiring = Wiring(sharp=1.0, blurred=0.1, voice=0.08, guidance=1.0)
    _build(folder, "StableDiffusionXLPipeline", wiring, TURBO_SCHEDULER, sample_size=64)


def build_lcm(folder: Path) -> None:
    """Text to image in few steps, and beside it the LoRA that belongs to the model, as ``LCM_LORA``."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    # A sampler that trusts one prediction needs an unblurred one, or its pictures saturate.
    _build(folder, "StableDiffusionXLPipeline", Wiring(sharp=1.0, blurred=0.1, voice=0.1, guidance=1.0), SCHEDULER)
    with seeded(SEED):
        save_file(_lora(UNet2DConditionModel.from_pretrained(folder / "unet")), folder / LCM_LORA)


def _lora(unet: Any) -> dict[str, torch.Tensor]:
    """In kohya's layout, as published: what the network makes of the text is a little other."""
    tensors = {}
    for name, layer in unet.named_modules():
        if name.endswith("attn2.to_v"):
            key = f"lora_unet_{name.replace('.', '_')}"
            outputs, inputs = layer.weight.shape
            tensors[f"{key}.lora_down.weight"] = torch.randn(LORA_RANK, inputs) / inputs**0.5
            tensors[f"{key}.lora_up.weight"] = 4.0 * torch.randn(outputs, LORA_RANK) * layer.weight.std()
            tensors[f"{key}.alpha"] = torch.tensor(LORA_RANK / 2)
    return tensors


def _build(folder: Path, pipeline: str, wiring: Wiring, scheduler: dict[str, Any], **options: Any) -> None:
    import diffusers

    with seeded(SEED):
        tokenizers = clip.tokenizer(), clip.tokenizer(pad="!")
        encoders = (
            clip.text_encoder(WIDTHS[0]),
            clip.text_encoder(WIDTHS[1], SECOND_LAYERS, projection=True),
        )
        denoiser = unet.sdxl_unet(wiring, text_width=sum(WIDTHS), pooled_width=WIDTHS[1], **options)
        prompts = _condition(tokenizers, encoders, clip.WORDS)
        # Without a negative prompt stock takes zeros, not the embedding of the empty text.
        empty = {**prompts, "encoder_hidden_states": torch.zeros_like(prompts["encoder_hidden_states"])}
        unet.centre(denoiser, wiring, prompts, empty)
        saved = getattr(diffusers, pipeline)(
            vae=vae.box_vae(scaling_factor=0.13025, force_upcast=True, sample_size=1024),
            text_encoder=encoders[0],
            text_encoder_2=encoders[1],
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=denoiser,
            scheduler=weights.scheduler(scheduler),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
        save(saved, folder, scheduler)


def _condition(tokenizers: Sequence[Any], encoders: Sequence[Any], texts: Sequence[str]) -> dict[str, Any]:
    """What SDXL's UNet reads: both encoders' states before their last layer, the second's pooled one, sizes."""
    hidden = []
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        tokens = tokenizer(list(texts), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        encoded = encoder(tokens.input_ids, output_hidden_states=True)
        hidden.append(encoded.hidden_states[-2])
    sizes = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]]).expand(len(texts), -1)
    return {
        "encoder_hidden_states": torch.cat(hidden, dim=-1),
        "added_cond_kwargs": {"text_embeds": encoded.text_embeds, "time_ids": sizes},
    }
