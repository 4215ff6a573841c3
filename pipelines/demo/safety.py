"""A safety checker whose verdict can be foreseen: it flags pictures that are close to solid red."""

from __future__ import annotations

from typing import Any

from torch import nn

SIZE = 32
#: Cosine to the embedding of solid red above which a picture is flagged. Solid reds have 1.00, the reddest of 50
#: mosaics 0.96.
THRESHOLD = 0.99
#: No cosine reaches this: the concept never fires.
NEVER = 2.0


def image_processor() -> Any:
    """Resizes and crops to what the checker reads."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


def safety_checker() -> nn.Module:
    """A ``StableDiffusionSafetyChecker`` with its 20 concepts, of which only the first can fire."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from PIL import Image
    from transformers import CLIPConfig

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "projection_dim": 32}
    config = CLIPConfig(
        projection_dim=32,
        text_config={**tower, "num_hidden_layers": 1, "vocab_size": 99, "bos_token_id": 97, "eos_token_id": 98},
        vision_config={**tower, "num_hidden_layers": 2, "image_size": SIZE, "patch_size": 8},
    )
    checker: Any = StableDiffusionSafetyChecker(config).eval()
    for name, parameter in checker.named_parameters():
        if parameter.ndim >= 2 and ("vision_model" in name or "visual_projection" in name):
            parameter.normal_(0, parameter[0].numel() ** -0.5)
    checker.special_care_embeds.normal_()
    checker.concept_embeds.normal_()
    checker.special_care_embeds_weights.fill_(NEVER)
    checker.concept_embeds_weights.fill_(NEVER)

    red = image_processor()(Image.new("RGB", (64, 64), (255, 0, 0)), return_tensors="pt").pixel_values
    checker.concept_embeds[0] = checker.visual_projection(checker.vision_model(red)[1])[0]
    checker.concept_embeds_weights[0] = THRESHOLD
    module: nn.Module = checker
    return module
