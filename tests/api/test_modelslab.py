"""ModelsLab clients: what they send, and what must come back."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from PIL import Image

from server.engine.executors.stub import StubExecutor

Serve = Callable[..., AbstractAsyncContextManager[Any]]

pytestmark = pytest.mark.anyio

TEXT2IMG = "/api/v6/images/text2img"

#: The JSON sample of the seed page, smaller.
SEED_SAMPLE = {
    "model_id": "flux",
    "prompt": "ultra realistic close up portrait",
    "negative_prompt": "blurry, low quality, distorted, deformed",
    "width": 128,
    "height": 128,
    "samples": 1,
    "num_inference_steps": 31,
    "safety_checker": "no",
    "seed": None,
    "guidance_scale": 7.5,
    "clip_skip": 2,
    "webhook": None,
    "track_id": None,
}
#: What PHP, Go and form clients make of the same.
STRINGS_SAMPLE = {
    "model_id": "SD15",
    "prompt": "a red bridge",
    "negative_prompt": "",
    "width": "128",
    "height": "64",
    "samples": "2",
    "num_inference_steps": "21",
    "guidance_scale": "5.5",
    "seed": "4139316548",
    "scheduler": "UniPCMultistepScheduler",
    "use_karras_sigmas": "yes",
    "safety_checker": "no",
    "enhance_prompt": "no",
    "track_id": "17",
    "webhook": "",
    "base64": "no",
    "lora_model": "",
    "lora_strength": "",
}
#: The whole ``meta`` of the answer to it.
STRINGS_META = {
    "prompt": "a red bridge",
    "model_id": "sd15",
    "model_note": "A demo model draws.",
    "negative_prompt": "",
    "scheduler": "UniPCMultistepScheduler",
    "W": 128,
    "H": 64,
    "width": 128,
    "height": 64,
    "guidance_scale": 5.5,
    "seed": 4139316548,
    "steps": 21,
    "num_inference_steps": 21,
    "n_samples": 2,
    "instant_response": "no",
    "use_karras_sigmas": "yes",
    "algorithm_type": "no",
    "reproducible": "no",
    "safety_checker": "no",
    "safety_checker_type": "sensitive_content_text",
    "enhance_prompt": "no",
    "enhance_style": None,
    "tomesd": "no",
    "multi_lingual": "no",
    "panorama": "no",
    "self_attention": "no",
    "free_u": "no",
    "highres_fix": "no",
    "upscale": "no",
    "watermark": "no",
    "full_url": "no",
    "output_format": "png",
    "temp": "no",
    "base64": "no",
    "vae": None,
    "lora": None,
    "lora_strength": 1,
    "embeddings": None,
    "clip_skip": 1,
    "ip_adapter_id": None,
    "ip_adapter_scale": 0.6,
    "ip_adapter_image": None,
    "outdir": "out",
}
#: All that a strict AI SDK provider wants in ``meta``.
STRICT_META = """base64 enhance_prompt file_prefix guidance_scale height instant_response n_samples negative_prompt
    outdir prompt safety_checker safety_checker_type seed temp width""".split()


async def test_the_seed_pages_sample_succeeds(api: Any) -> None:
    answer = await api.text2img(**SEED_SAMPLE)
    body = answer.json()
    assert answer.status_code == 200
    assert (body["status"], type(body["id"]), type(body["generationTime"])) == ("success", int, float)
    assert body["warning"] == "Not used by flux: negative_prompt (without true_cfg), clip_skip."
    assert "request_id" not in body and "future_links" not in body
    assert (body["nsfw_content_detected"], body["webhook_status"], body["tip"]) == (False, "", "")
    assert body["output"] == body["proxy_links"]
    assert 0 <= body["meta"]["seed"] < 2**32
    assert (body["meta"]["model_id"], body["meta"]["clip_skip"]) == ("flux", 1)


async def test_a_sample_of_strings_succeeds_with_complete_meta(api: Any) -> None:
    body = (await api.text2img(**STRINGS_SAMPLE)).json()
    meta = body.pop("meta")
    name = body["output"][0].rpartition("/0-")[2]
    assert meta == STRINGS_META | {"file_prefix": name}
    assert set(STRICT_META) <= set(meta)
    assert body["track_id"] == "17"
    assert "warning" not in body
    assert len(body["output"]) == 2


async def test_the_pictures_can_be_read(api: Any) -> None:
    body = (await api.text2img()).json()
    assert body["output"][0].startswith("http://images.test/generations/0-")
    answer = await api.client.get(body["output"][0])
    assert (answer.status_code, answer.content[:8]) == (200, b"\x89PNG\r\n\x1a\n")


async def test_what_is_left_out_takes_the_models_value_or_the_documented_one(api: Any) -> None:
    plain = {"key": api.key, "prompt": "x", "model_id": ""}
    documented = (await api.client.post(TEXT2IMG, json=plain)).json()["meta"]
    assert [documented[key] for key in ("model_id", "W", "H", "steps", "guidance_scale")] == [
        "sd15", 512, 512, 31, 7.5
    ]  # fmt: skip
    own = (await api.client.post(TEXT2IMG, json=plain | {"model_id": "sdxl-lightning"})).json()["meta"]
    assert [own[key] for key in ("W", "H", "steps", "guidance_scale")] == [128, 128, 4, 0.0]


async def test_values_out_of_range_are_clamped_and_named(api: Any) -> None:
    body = (await api.text2img(samples=9, num_inference_steps=500, width=1001, height=70, guidance_scale=0)).json()
    meta = body["meta"]
    assert [meta[key] for key in ("n_samples", "steps", "W", "H", "guidance_scale")] == [4, 50, 1000, 64, 1]
    assert body["warning"] == (
        "width 1001 was lowered to 1000. height 70 was lowered to 64. samples 9 was lowered to 4. "
        "steps 500 was lowered to 50. guidance 0 was raised to 1."
    )


@pytest.mark.parametrize("seed", [None, "", -1, "-1", "random", "null", True])
async def test_a_seed_that_says_nothing_is_random(api: Any, seed: object) -> None:
    assert 0 <= (await api.text2img(seed=seed)).json()["meta"]["seed"] < 2**32


async def test_the_same_seed_draws_the_same_picture(api: Any) -> None:
    links = [(await api.text2img(seed=2**63 - 1)).json()["output"][0] for _ in range(2)]
    # The files differ: each names its job.
    files = [io.BytesIO((await api.client.get(link)).content) for link in links]
    first, second = (Image.open(file).tobytes() for file in files)
    assert first == second


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"scheduler": "DPM++ 2M Karras"}, ("DPMSolverMultistepScheduler", "yes", "no")),
        ({"scheduler": "euler", "use_karras_sigmas": True}, ("EulerDiscreteScheduler", "yes", "no")),
        ({"scheduler": "Euler"}, ("EulerDiscreteScheduler", "no", "no")),
        (
            {"scheduler": "DPMSolverMultistep", "algorithm_type": "dpmsolver+++", "use_karras_sigmas": "NO"},
            ("DPMSolverMultistepScheduler", "no", "sde-dpmsolver++"),
        ),
        ({"scheduler": "DPMSolverMultistep", "algorithm_type": "none"}, ("DPMSolverMultistepScheduler", "no", "no")),
    ],
)
async def test_schedulers_go_by_any_name(api: Any, fields: dict[str, object], expected: tuple[str, ...]) -> None:
    body = (await api.text2img(**fields)).json()
    assert tuple(body["meta"][key] for key in ("scheduler", "use_karras_sigmas", "algorithm_type")) == expected
    assert "warning" not in body


async def test_an_unknown_scheduler_is_a_warning(api: Any) -> None:
    body = (await api.text2img(scheduler="Foo")).json()
    assert (body["status"], body["warning"]) == ("success", "Unknown scheduler 'Foo': the model's own was used.")


async def test_every_option_that_is_not_applied_is_named(api: Any) -> None:
    asked = {
        "ip_adapter_scale": 1,
        "init_image": "http://a/b.png",
        "tomesd": "yes",
        "self_attention": "perhaps",
    }
    body = (await api.text2img(**asked)).json()
    assert body["status"] == "success"
    assert body["warning"] == "Not applied: tomesd, self_attention, ip_adapter_scale, init_image."
    assert (body["meta"]["lora"], body["meta"]["upscale"]) == (None, "no")


@pytest.mark.parametrize(
    "neutral",
    [
        {"upscale": "1"}, {"upscale": 1}, {"upscale": False}, {"lora_strength": 1}, {"lora_strength": "1.0"},
        {"clip_skip": None}, {"clip_skip": "1"}, {"vae": "none"}, {"tomesd": "FALSE"}, {"unknown_field": {"a": 1}},
        {"ip_adapter_scale": "0.6"}, {"use_cfg_zero_star": True}, {"true_cfg_scale": 1.0},
    ],
)  # fmt: skip
async def test_options_that_ask_for_nothing_are_not_named(api: Any, neutral: dict[str, object]) -> None:
    assert "warning" not in (await api.text2img(**neutral)).json()


async def test_highres_fix_draws_in_two_passes_what_is_larger_than_the_models_size(api: Any) -> None:
    body = (await api.text2img(width=1024, height=768, highres_fix="yes")).json()
    assert (body["meta"]["highres_fix"], body["meta"]["W"], body["meta"]["H"]) == ("yes", 1024, 768)
    assert "warning" not in body
    assert api.executor.requests[0].highres == (584, 440)


@pytest.mark.parametrize(
    ("given", "factor", "told"),
    [
        ("yes", 2, "2"), (True, 2, "2"), ("2", 2, "2"), ("3", 3, "3"), (4.0, 4, "4"), ("1", 1, "no"), (1, 1, "no"),
        (False, 1, "no"), ("no", 1, "no"), (0, 1, "no"), (-2, 1, "no"), (None, 1, "no"), ("", 1, "no"),
    ],
)  # fmt: skip
async def test_upscale_is_a_yes_or_a_factor(api: Any, given: object, factor: int, told: str) -> None:
    body = (await api.text2img(upscale=given)).json()
    assert api.executor.requests[0].upscale == factor
    assert (body["meta"]["upscale"], body["meta"]["W"]) == (told, 64)
    assert "warning" not in body


async def test_a_factor_that_is_too_large_is_lowered_with_a_warning(api: Any) -> None:
    body = (await api.text2img(width=1024, height=1024, upscale=100)).json()
    assert body["meta"]["upscale"] == "5"
    assert body["warning"] == "upscale 100 was lowered to 5: 8 times and 33.6 million pixels are the most."


async def test_highres_fix_of_what_is_not_larger_is_not_claimed(api: Any) -> None:
    body = (await api.text2img(highres_fix=True)).json()
    assert body["meta"]["highres_fix"] == "no"
    assert body["warning"] == "highres_fix was not used: sd15 draws 64 x 64 in one pass."


@pytest.mark.parametrize(
    ("fields", "loras", "echoed"),
    [
        ({"lora_model": " a, b ", "lora_strength": "0.45,0.55"}, (("a", 0.45), ("b", 0.55)), ("a,b", "0.45,0.55")),
        ({"lora_model": "a,b,c", "lora_strength": "0.5,-2"}, (("a", 0.5), ("b", -2), ("c", 1)), ("a,b,c", "0.5,-2,1")),
        ({"lora_model": "a,b", "lora_strength": 0.5}, (("a", 0.5), ("b", 0.5)), ("a,b", "0.5,0.5")),
        ({"lora_model": ["a", "b"], "lora_strength": [1, 2]}, (("a", 1), ("b", 2)), ("a,b", "1,2")),
        ({"lora": "a", "lora_strength": None}, (("a", 1),), ("a", 1.0)),
        ({"lora_model": "a,,b", "lora_strength": "1,2,3"}, (("a", 1), ("b", 3)), ("a,b", "1,3")),
        ({"lora_model": "none", "lora_strength": "1"}, (), (None, 1)),
    ],
)
async def test_loras_are_two_lists(
    api: Any, fields: dict[str, object], loras: object, echoed: tuple[object, object]
) -> None:
    body = (await api.text2img(**fields)).json()
    assert api.executor.requests[-1].loras == loras
    assert (body["meta"]["lora"], body["meta"]["lora_strength"]) == echoed
    assert "warning" not in body


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"embeddings_model": " easy-negative , <toy>"}, ("easy-negative", "<toy>")),
        ({"embeddings": ["a", "b", "a"]}, ("a", "b")),
        ({"embeddings_model": "a,,null"}, ("a",)),
        ({"embeddings_model": "no"}, ()),
        ({"embeddings_model": ""}, ()),
    ],
)
async def test_embeddings_are_a_list_of_names(api: Any, fields: dict[str, object], names: tuple[str, ...]) -> None:
    body = (await api.text2img(**fields)).json()
    assert api.executor.requests[-1].embeddings == names
    assert body["meta"]["embeddings"] == (",".join(names) or None)
    assert "warning" not in body


@pytest.mark.parametrize("value", [",".join("a" * 17), "a" * 201, [{}]])
async def test_what_is_no_list_of_embeddings_is_refused(api: Any, value: object) -> None:
    response = await api.text2img(embeddings_model=value)
    assert (response.status_code, [*response.json()["errors"]]) == (400, ["embeddings_model"])


async def test_lora_strengths_are_clamped(api: Any) -> None:
    body = (await api.text2img(lora_model="a,b", lora_strength="9,-1e30")).json()
    assert (body["meta"]["lora_strength"], body["warning"]) == (
        "4,-4",
        "strength of LoRA a 9 was lowered to 4. strength of LoRA b -9223372036854775808 was raised to -4.",
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"lora_strength": 0.5}, "lora_strength"),
        ({"lora_model": "a", "lora_strength": "1,2"}, "lora_strength after the last LoRA"),
    ],
)
async def test_a_strength_without_its_lora_is_named(api: Any, fields: dict[str, object], named: str) -> None:
    assert (await api.text2img(**fields)).json()["warning"] == f"Not applied: {named}."


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"lora_model": "a", "lora_strength": "much"}, "lora_strength"), ({"lora_model": [{}]}, "lora_model"),
     ({"lora_model": "a" * 201}, "lora_model"), ({"lora_model": ",".join("a" * 17)}, "lora_model")],
)  # fmt: skip
async def test_what_is_no_list_of_loras_is_refused(api: Any, fields: dict[str, object], field: str) -> None:
    assert list((await api.text2img(**fields)).json()["errors"]) == [field]


@pytest.mark.parametrize("track_id", [17, "17", 1.5, True])
async def test_track_id_keeps_its_type(api: Any, track_id: object) -> None:
    body = (await api.text2img(track_id=track_id)).json()
    assert (body["track_id"], type(body["track_id"])) == (track_id, type(track_id))


async def test_clip_skip_is_drawn_with_and_echoed(api: Any) -> None:
    body = (await api.text2img(clip_skip="2")).json()
    assert "warning" not in body
    assert (body["meta"]["clip_skip"], api.executor.requests[-1].clip_skip) == (2, 2)


@pytest.mark.parametrize(
    ("asked", "used", "warning"),
    [
        (0, 1, "clip_skip 0 was raised to 1."),
        (-3, 1, "clip_skip -3 was raised to 1."),
        (12, 8, "clip_skip 12 was lowered to 8."),
    ],
)
async def test_clip_skip_out_of_range_is_clamped_and_named(api: Any, asked: int, used: int, warning: str) -> None:
    body = (await api.text2img(clip_skip=asked)).json()
    assert (body["meta"]["clip_skip"], body["warning"]) == (used, warning)


@pytest.mark.parametrize("left_out", [{}, {"clip_skip": None}, {"clip_skip": ""}])
async def test_clip_skip_left_out_can_be_the_documented_one(serve: Serve, left_out: dict[str, object]) -> None:
    async with serve(modelslab={"clip_skip_default": 2}) as api:
        body = (await api.text2img(**left_out)).json()
        flux = (await api.text2img(model_id="flux", **left_out)).json()
    assert (body["meta"]["clip_skip"], "warning" in body) == (2, False)
    assert (flux["meta"]["clip_skip"], "warning" in flux) == (1, False)


async def test_reproducible_is_an_extension(api: Any) -> None:
    assert (await api.text2img(reproducible="yes")).json()["meta"]["reproducible"] == "yes"
    assert api.executor.requests[-1].reproducible


# Transport and keys


async def test_a_call_may_come_in_any_transport(api: Any) -> None:
    fields = {"key": api.key, "prompt": "a & b ü", "width": "64", "height": "64"}
    data = json.dumps(fields).encode()
    form = {"content-type": "application/x-www-form-urlencoded"}
    answers = [
        await api.client.post(TEXT2IMG, json=fields),
        await api.client.post(TEXT2IMG, content=data),
        await api.client.post(TEXT2IMG, content=b"\xef\xbb\xbf" + data, headers=form),
        await api.client.post(TEXT2IMG, content=data, headers={"content-type": "text/plain"}),
        await api.client.post(TEXT2IMG, data=fields),
        await api.client.post(TEXT2IMG, data=fields, files={"extra": ("x.bin", b"\0")}),
        await api.client.post(TEXT2IMG, params=fields),
        await api.client.post(TEXT2IMG + "/", params={**fields, "prompt": "lost"}, json={"prompt": "a & b ü"}),
    ]
    assert [one.status_code for one in answers] == [200] * len(answers)
    assert {one.json()["meta"]["prompt"] for one in answers} == {"a & b ü"}


@pytest.mark.parametrize(
    ("headers", "body_key"),
    [
        ({"key": "KEY"}, None),
        ({"authorization": "Bearer KEY"}, ""),
        ({"x-api-key": "KEY"}, None),
        ({"key": "wrong"}, "KEY"),
        ({"key": "", "authorization": "Basic eDp5", "x-api-key": "KEY"}, "  "),
    ],
)
async def test_the_first_key_that_is_not_empty_counts(api: Any, headers: dict[str, str], body_key: str | None) -> None:
    real = {name: value.replace("KEY", api.key) for name, value in headers.items()}
    key = body_key and body_key.replace("KEY", api.key)
    fields = {"key": key, "prompt": "x", "width": 64, "height": 64}
    assert (await api.client.post(TEXT2IMG, headers=real, json=fields)).status_code == 200


async def test_the_key_may_be_in_the_query(api: Any) -> None:
    answer = await api.client.post(TEXT2IMG, params={"key": api.key}, json={"prompt": "x", "width": 64, "height": 64})
    assert answer.status_code == 200


async def test_the_key_is_nowhere_but_in_the_call(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    api.executor.fail_next(RuntimeError("boom"))
    headers = {"key": api.key, "authorization": f"Bearer {api.key}", "x-api-key": api.key}
    fields = {"key": api.key, "prompt": "x", "instant_response": "yes", "track_id": 1}
    answers = []
    for more in ({}, {"model_id": "nothing"}, {"prompt": None}):
        answers.append(await api.client.post(TEXT2IMG, headers=headers, params={"key": api.key}, json=fields | more))
    answers.append(await api.fetch(answers[0].json()["id"], wait=10))
    answers.append(await api.fetch("1"))
    stored = await api.parts.jobs.get(answers[0].json()["id"])
    texts = [answer.text + str(answer.headers) for answer in answers]
    # The test's own client logs the URLs that it calls.
    texts += [repr(vars(record)) for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert api.key not in "\n".join([*texts, repr(stored)])
    database = b"".join(file.read_bytes() for file in api.parts.settings.data.glob("latentd.db*"))
    assert api.key.encode() not in database


@pytest.mark.parametrize("nothing", [False, "false", "none", "No", "null", 0])
async def test_a_choice_that_is_declined_is_not_given(api: Any, nothing: object) -> None:
    answer = await api.text2img(webhook=nothing, algorithm_type=nothing, scheduler=nothing)
    body = answer.json()
    assert (answer.status_code, body["status"]) == (200, "success")
    assert "warning" not in body


async def test_every_warning_ends_with_one_full_stop(serve: Any) -> None:
    async with serve(StubExecutor(warnings=["Said without", "Said with.", "Said twice.."])) as api:
        body = (await api.text2img()).json()
    assert body["warning"] == "Said without. Said with. Said twice."
