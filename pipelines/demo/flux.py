"""The demo checkpoints of the Flux family, as diffusers folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipelines.demo import clip, t5, transformer, vae, weights
from pipelines.demo.weights import save, seeded

#: As published with FLUX.1-dev and FLUX.1-Fill-dev.
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.30.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
#: As published with FLUX.1-schnell.
SCHNELL_SCHEDULER = {**SCHEDULER, "shift": 1.0, "use_dynamic_shifting": False}

SEED = 3
#: Of FLUX.1-Fill-dev: 64 features of the latents, 64 of the masked picture, 256 of the mask.
FILL_CHANNELS = 384
LATENTS = 16


def build(folder: Path) -> None:
    """Flux dev: guidance is an input. The same bytes every time, for one version of torch and diffusers."""
    _build(folder, "FluxPipeline", SCHEDULER, guidance_embeds=True)


def build_schnell(folder: Path) -> None:
    """Flux schnell: few steps, no guidance."""
    _build(folder, "FluxPipeline", SCHNELL_SCHEDULER, guidance_embeds=False)


def build_fill(folder: Path) -> None:
    """Flux Fill: reads mask and masked picture."""
    _build(folder, "FluxFillPipeline", SCHEDULER, guidance_embeds=True, in_channels=FILL_CHANNELS)


def _build(folder: Path, pipeline: str, scheduler: dict[str, Any], **options: Any) -> None:
    import diffusers

    with seeded(SEED):
        tokenizers = clip.tokenizer(), t5.tokenizer()
        encoders = clip.text_encoder(), t5.encoder()
        denoiser = transformer.flux_transformer(**options)
        words = list(clip.WORDS)
        pooled = tokenizers[0](words, padding="max_length", max_length=77, return_tensors="pt").input_ids
        tokens = tokenizers[1](words, padding="max_length", max_length=128, return_tensors="pt").input_ids
        transformer.centre(
            denoiser,
            encoder_hidden_states=encoders[1](tokens).last_hidden_state,
            pooled_projections=encoders[0](pooled).pooler_output,
            txt_ids=torch.zeros(tokens.shape[1], 3),
            guidance=torch.full((len(words),), 3.5) if options["guidance_embeds"] else None,
        )
        saved = getattr(diffusers, pipeline)(
            vae=vae.box_vae(
                LATENTS,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
                force_upcast=True,
                sample_size=1024,
            ),
            text_encoder=encoders[0],
            text_encoder_2=encoders[1],
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            transformer=denoiser,
            scheduler=weights.scheduler(scheduler),
        )
        save(saved, folder, scheduler)
