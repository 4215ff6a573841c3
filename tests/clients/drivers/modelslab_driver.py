"""The older SDK, whose methods take every field by position and return text; only the addresses are changed."""

import json
import os

from modelslab import ModelsLab

URL, KEY, PICTURE, MASK = (os.environ[name] for name in ("URL", "KEY", "PICTURE", "MASK"))
sdk = ModelsLab()
for part in vars(sdk).values():
    for name in ("base_url", "route"):
        if hasattr(part, name):
            setattr(part, name, getattr(part, name).replace("https://modelslab.com", URL))

images = sdk.community_models
#: What the documentation's own samples send: strings, and nulls for the rest.
COMMON = dict(
    key=KEY,
    model_id="sd15",
    prompt="a bridge",
    negative_prompt=None,
    width="64",
    height="64",
    samples="1",
    safety_checker="no",
    enhance_prompt="no",
    guidance_scale=7.5,
    scheduler="UniPCMultistepScheduler",
    seed=None,
    embeddings_model=None,
    lora_model=None,
    lora_strength=None,
    tomesd="yes",
    use_karras_sigmas="yes",
    vae=None,
    webhook=None,
    track_id=None,
)
TEXT = dict(multi_lingual="no", panorama="no", self_attention="no", upscale="no", clip_skip="2")

first = json.loads(images.txt2img(**COMMON, **TEXT, num_inference_steps="3"))
answers = {
    "text2img": first,
    "img2img": json.loads(images.img2img(**COMMON, init_image=PICTURE, strength=0.7, num_inference_steps="3")),
    "inpaint": json.loads(
        images.inpaint(**COMMON, init_image=PICTURE, mask_image=MASK, strength=0.7, steps="3"),
    ),
    "fetched": json.loads(images.fetch_queued(KEY, first["id"])),
    "reload": json.loads(images.reload_model(KEY, "sd15")),
    "super_resolution": json.loads(sdk.image_editing.super_resolution(KEY, PICTURE, scale=2)),
    "models": json.loads(sdk.miscs.dreambooth_model_list(KEY)),
    "cropped": json.loads(sdk.miscs.base64_crop(KEY, PICTURE)),
    "deleted": json.loads(sdk.miscs.delete_image(KEY, first["id"])),
    "update_s3": json.loads(sdk.ep_general.update_s3(KEY, "text_to_image", *[""] * 6)),
}
print(json.dumps(answers))
