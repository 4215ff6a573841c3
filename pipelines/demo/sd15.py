"""The demo checkpoints of the SD1.5 family, as diffusers folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.demo import clip, safety, unet, vae, weights
from pipelines.demo.unet import Wiring
from pipelines.demo.weights import save, seeded

#: As published with SD1.5.
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
#: As published with the LCM checkpoints.
LCM_SCHEDULER = {
    "_class_name": "LCMScheduler",
    "_diffusers_version": "0.22.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
    "trained_betas": None,
}

#: Chosen by eye: prompts differ in red, green and blue alike.
SEED = 14
#: Width of the guidance embedding of the published LCM UNets.
GUIDANCE_WIDTH = 256


def build(folder: Path) -> None:
    """Text to image; the same bytes every time, for one version of torch and diffusers."""
    _build(folder, "StableDiffusionPipeline", Wiring(), SCHEDULER)


def build_inpaint(folder: Path) -> None:
    """The UNet reads mask and masked picture: 9 channels."""
    wiring = Wiring(known=0.6)
    _build(folder, "StableDiffusionInpaintPipeline", wiring, SCHEDULER, in_channels=unet.INPAINT_CHANNELS)


def build_lcm(folder: Path) -> None:
    """A distilled UNet: guidance is an input of it, few steps, no negative prompt."""
    # A sampler that trusts one prediction needs an unblurred one, or its pictures saturate.
    wiring = Wiring(sharp=1.0, blurred=0.1, voice=0.1, guidance=1.0)
    _build(folder, "StableDiffusionPipeline", wiring, LCM_SCHEDULER, time_cond_proj_dim=GUIDANCE_WIDTH)


def _build(folder: Path, pipeline: str, wiring: Wiring, scheduler: dict[str, Any], **options: Any) -> None:
    import diffusers

    with seeded(SEED):
        tokenizer, text_encoder = clip.tokenizer(), clip.text_encoder()
        denoiser = unet.sd15_unet(wiring, **options)
        distilled = "time_cond_proj_dim" in options
        conditions = []
        for texts in (clip.WORDS, [""] * len(clip.WORDS)):
            condition = {"encoder_hidden_states": clip.encode(tokenizer, text_encoder, list(texts))}
            if distilled:
                condition["timestep_cond"] = guidance_embedding(7.5).expand(len(texts), -1)
            conditions.append(condition)
        unet.centre(denoiser, wiring, *conditions)
        saved = getattr(diffusers, pipeline)(
            vae=vae.box_vae(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=denoiser,
            scheduler=weights.scheduler(scheduler),
            safety_checker=safety.safety_checker(),
            feature_extractor=safety.image_processor(),
        )
        save(saved, folder, scheduler)


def guidance_embedding(guidance: float) -> Any:
    """What stock feeds to ``time_cond_proj_dim``: (1, GUIDANCE_WIDTH)."""
    import torch
    from diffusers import StableDiffusionPipeline

    # Stock's method reads nothing of its pipeline.
    embed: Any = StableDiffusionPipeline.get_guidance_scale_embedding
    return embed(None, torch.tensor([guidance - 1]), embedding_dim=GUIDANCE_WIDTH)
