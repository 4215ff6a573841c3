"""``enhance_prompt`` and ``enhance_style`` as clients see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

MINE = """
[enhance]
suffix = "detailed"
[styles.ink]
prefix = "ink drawing"
negative = "colour"
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path) -> None:
    (tmp_path / "styles.toml").write_text(MINE)


@pytest.mark.parametrize(
    ("fields", "prompt", "negative", "echoed"),
    [
        ({}, "a red bridge", "", ("no", None)),
        ({"enhance_prompt": "no", "enhance_style": None}, "a red bridge", "", ("no", None)),
        ({"enhance_prompt": True}, "a red bridge, detailed", "", ("yes", None)),
        ({"enhance_style": "Ink"}, "ink drawing, a red bridge", "colour", ("no", "ink")),
        (
            {"enhance_prompt": "yes", "enhance_style": "ink", "negative_prompt": "cars"},
            "ink drawing, a red bridge, detailed",
            "cars, colour",
            ("yes", "ink"),
        ),
    ],
)
async def test_what_is_drawn_is_what_meta_says(
    api: Any, fields: dict[str, object], prompt: str, negative: str, echoed: tuple[str, str | None]
) -> None:
    body = (await api.text2img(**fields)).json()
    meta = body["meta"]
    assert (meta["prompt"], meta["negative_prompt"]) == (prompt, negative)
    assert (meta["enhance_prompt"], meta["enhance_style"]) == echoed
    request = api.executor.requests[-1]
    assert (request.prompt, request.negative_prompt or "") == (prompt, negative)
    assert "warning" not in body


async def test_the_checkouts_styles_are_there(api: Any) -> None:
    assert (await api.text2img(enhance_style="line art")).json()["meta"]["enhance_style"] == "line-art"


async def test_an_unknown_style_is_named(api: Any) -> None:
    body = (await api.text2img(enhance_style="cubism")).json()
    assert (body["meta"]["enhance_style"], body["meta"]["prompt"]) == (None, "a red bridge")
    assert body["warning"] == "Unknown style 'cubism': none was used."


async def test_a_style_of_the_operators_counts_without_a_restart(api: Any, tmp_path: Path) -> None:
    (tmp_path / "styles.toml").write_text(MINE + '[styles.fur]\nsuffix = "furry"\n')
    assert (await api.text2img(enhance_style="fur")).json()["meta"]["prompt"] == "a red bridge, furry"


async def test_flux_takes_the_prompt_as_it_is(api: Any) -> None:
    body = (await api.text2img(model_id="flux", enhance_prompt="yes", enhance_style="ink", negative_prompt="x")).json()
    meta = body["meta"]
    assert (meta["prompt"], meta["enhance_prompt"], meta["enhance_style"]) == ("a red bridge", "no", None)
    assert body["warning"] == "Not used by flux: negative_prompt (without true_cfg), enhance_prompt, enhance_style."
