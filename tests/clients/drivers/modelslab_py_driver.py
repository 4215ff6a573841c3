"""The official Python SDK, synchronous and asynchronous; nothing of it is changed but the address."""

import asyncio
import json
import os

from modelslab_py.core.apis.community import Community
from modelslab_py.core.apis.image_editing import Image_editing
from modelslab_py.core.apis.realtime import Realtime
from modelslab_py.core.client import Client
from modelslab_py.schemas.community import Image2Image, Inpainting, Text2Image
from modelslab_py.schemas.image_editing import SuperResolutionSchema
from modelslab_py.schemas.realtime import RealtimeText2ImageSchema

PICTURE, MASK = os.environ["PICTURE"], os.environ["MASK"]
SMALL = {"model_id": "sd15", "width": 64, "height": 64, "num_inference_steps": 3, "seed": 5}


def client() -> Client:
    made = Client(os.environ["KEY"], fetch_retry=30, fetch_timeout=1)
    made.base_url = os.environ["URL"] + "/api/"
    return made


def failure(call) -> str:
    try:
        return json.dumps(call())
    except Exception as error:
        return str(error)


def synchronous() -> dict:
    community, editing, realtime = Community(client()), Image_editing(client()), Realtime(client())
    later = community.text_to_image(Text2Image(prompt="a bridge", instant_response="yes", track_id="t-1", **SMALL))
    return {
        "text2img": community.text_to_image(Text2Image(prompt="a bridge", safety_checker="no", upscale="no", **SMALL)),
        "img2img": community.image_to_image(Image2Image(prompt="a bridge", init_image=PICTURE, **SMALL)),
        "inpaint": community.inpainting(Inpainting(prompt="a bridge", init_image=PICTURE, mask_image=MASK, **SMALL)),
        "realtime": realtime.text_to_image(RealtimeText2ImageSchema(prompt="a bridge", width=64, height=64)),
        "super_resolution": editing.super_resolution(SuperResolutionSchema(init_image=PICTURE, scale=2)),
        "later": later,
        # The SDK concatenates: the caller has to make a string of the id.
        "fetched": community.fetch(str(later["id"])),
        "unknown_model": failure(lambda: community.text_to_image(Text2Image(prompt="x", model_id="no-such-model"))),
        "enterprise": Community(client(), enterprise=True).system_details(),
    }


async def asynchronous() -> dict:
    async with client() as shared:
        community = Community(shared)
        later = await community.async_text_to_image(Text2Image(prompt="a bridge", instant_response="yes", **SMALL))
        return {
            "text2img": await community.async_text_to_image(Text2Image(prompt="a bridge", **SMALL)),
            "later": later,
            "fetched": await community.async_fetch(str(later["id"])),
        }


print(json.dumps({"sync": synchronous(), "async": asyncio.run(asynchronous())}))
