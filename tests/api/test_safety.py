"""The safety checker as clients and operators see it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.safety import CheckerFiles
from server.config import SafetySettings
from server.engine.executors.stub import StubExecutor

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[Any]]
HERE = CheckerFiles(folder=Path("sd15"))
MISSING = "The safety checker's weights are not here, and this server draws nothing without it."


def verdict(body: dict[str, Any]) -> tuple[object, ...]:
    meta = body["meta"]
    return meta["safety_checker"], meta["safety_checker_type"], body["nsfw_content_detected"], body.get("warning")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("no", "sensitive_content_text", False, None)),
        ({"safety_checker": "no", "safety_checker_type": "blur"}, ("no", "blur", False, None)),
        ({"safety_checker": "yes"}, ("yes", "sensitive_content_text", True, None)),
        ({"safety_checker": True, "safety_checker_type": "Black "}, ("yes", "black", True, None)),
        ({"safety_checker": "1", "safety_checker_type": "pixelate"}, ("yes", "pixelate", True, None)),
        ({"safety_checker": "yes", "prompt": "a lamb"}, ("yes", "sensitive_content_text", False, None)),
        (
            {"safety_checker": "yes", "safety_checker_type": 7},
            (
                "yes",
                "sensitive_content_text",
                True,
                "Unknown safety checker type '7': sensitive_content_text was used.",
            ),
        ),
    ],
)
async def test_a_request_says_whether_it_is_checked(
    serve: Serve, fields: dict[str, Any], expected: tuple[object, ...]
) -> None:
    async with serve(StubExecutor(flags={"a red bridge"}), checker=HERE) as api:
        assert verdict((await api.text2img(**fields)).json()) == expected
        used = expected[1] if expected[0] == "yes" else None
        assert api.executor.requests[-1].safety == used


@pytest.mark.parametrize("value", ["perhaps", [], 7])
async def test_what_is_neither_yes_nor_no_is_refused(api: Any, value: object) -> None:
    answer = await api.text2img(safety_checker=value)
    assert (answer.status_code, answer.json()["message"]) == (400, "The safety_checker field must be true or false")


async def test_yes_without_weights_is_drawn_unchecked_with_a_warning(api: Any) -> None:
    body = (await api.text2img(safety_checker="yes", safety_checker_type="blur")).json()
    assert verdict(body) == ("no", "blur", False, "The safety checker was not used: its weights are not here.")
    assert (await api.client.get("/ready")).status_code == 200


async def test_the_setting_holds_where_the_request_is_silent(serve: Serve) -> None:
    settings = SafetySettings(default="yes", type="blur")
    async with serve(StubExecutor(flags={"a red bridge"}), checker=HERE, safety=settings) as api:
        assert verdict((await api.text2img()).json()) == ("yes", "blur", True, None)
        assert verdict((await api.text2img(safety_checker="no")).json()) == ("no", "blur", False, None)


async def test_a_server_that_checks_everything_knows_no_no(serve: Serve) -> None:
    async with serve(StubExecutor(flags={"a red bridge"}), checker=HERE, safety=SafetySettings(force=True)) as api:
        warning = "The safety checker was used: this server draws nothing without it."
        body = (await api.text2img(safety_checker="no", safety_checker_type="black")).json()
        assert verdict(body) == ("yes", "black", True, warning)
        assert verdict((await api.text2img()).json()) == ("yes", "sensitive_content_text", True, None)
        assert (await api.client.get("/ready")).status_code == 200


async def test_a_server_that_checks_everything_draws_nothing_without_weights(serve: Serve) -> None:
    async with serve(safety=SafetySettings(force=True)) as api:
        ready = await api.client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "reason": MISSING})
        for asked in ("yes", "no", None):
            answer = await api.text2img(safety_checker=asked)
            assert (answer.status_code, answer.json()["message"]) == (503, MISSING)
        assert api.executor.requests == []


async def test_a_job_from_before_the_setting_is_checked_all_the_same(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), checker=HERE) as api:
        queued = (await api.text2img(instant_response="yes", safety_checker="no")).json()
        assert queued["meta"]["safety_checker"] == "no"
    executor = StubExecutor(flags={"a red bridge"})
    async with serve(executor, checker=HERE, safety=SafetySettings(force=True, type="blur")) as api:
        body = (await api.fetch(queued["id"], wait=10)).json()
    assert verdict(body) == ("yes", "blur", True, None)
    assert executor.requests == [replace(executor.requests[0], safety="blur")]


async def test_flagged_pictures_show_in_the_answer_of_a_fetch(serve: Serve) -> None:
    async with serve(StubExecutor(flags={"a red bridge"}), checker=HERE) as api:
        queued = (await api.text2img(instant_response="yes", safety_checker="yes")).json()
        assert queued["meta"]["safety_checker"] == "yes"
        assert (await api.fetch(queued["id"], wait=10)).json()["nsfw_content_detected"] is True
