"""The demo checkpoint of the SD1.5 family, as a diffusers folder."""

from __future__ import annotations

from pathlib import Path

from pipelines.demo import clip, safety, unet, vae
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


#: Chosen by eye: prompts differ in red, green and blue alike.
SEED = 14


def build(folder: Path) -> None:
    """Writes the checkpoint into ``folder``; the same bytes every time, for one version of torch and diffusers."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    with seeded(SEED):
        tokenizer, text_encoder, denoiser = clip.tokenizer(), clip.text_encoder(), unet.sd15_unet()
        unet.centre(
            denoiser, clip.encode(tokenizer, text_encoder, clip.WORDS), clip.encode(tokenizer, text_encoder, [""])
        )
        pipeline = StableDiffusionPipeline(
            vae=vae.box_vae(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=denoiser,
            scheduler=PNDMScheduler.from_config(SCHEDULER),
            safety_checker=safety.safety_checker(),
            feature_extractor=safety.image_processor(),
        )
        save(pipeline, folder, SCHEDULER)
