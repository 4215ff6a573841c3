"""``vae`` as clients see it: used when it is there, left out with a warning when not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.anyio


def put(data: Path, name: str) -> None:
    """The smallest sound safetensors file."""
    (data / "vaes").mkdir(exist_ok=True)
    (data / "vaes" / f"{name}.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


async def test_a_vae_that_is_copied_into_the_folder_is_used_by_the_next_request(api: Any, tmp_path: Path) -> None:
    for _ in range(2):
        body = (await api.text2img(vae="soft")).json()
        assert (body["meta"]["vae"], api.executor.requests[-1].vae) == (None, None)
        assert body["warning"] == "VAE not found: soft: the model's own was used."
    put(tmp_path, "soft")
    body = (await api.text2img(vae="soft")).json()
    assert (body["meta"]["vae"], api.executor.requests[-1].vae) == ("soft", "soft")
    assert "warning" not in body


@pytest.mark.parametrize("value", [None, "", "none", "no", False])
async def test_nothing_asked_for_is_the_models_own(api: Any, tmp_path: Path, value: object) -> None:
    put(tmp_path, "none")
    body = (await api.text2img(vae=value)).json()
    assert (body["meta"]["vae"], "warning" in body) == (None, False)


@pytest.mark.parametrize("name", ["../vaes/soft", "/etc/passwd", "*", "so*", "a" * 900, "soft/"])
async def test_a_name_leads_nowhere_else(api: Any, tmp_path: Path, name: str) -> None:
    put(tmp_path, "soft")
    body = (await api.text2img(vae=name)).json()
    assert body["meta"]["vae"] is None
    assert body["warning"] == f"VAE not found: {name[:100]}: the model's own was used."


async def test_the_name_survives_the_job_store(api: Any, tmp_path: Path) -> None:
    put(tmp_path, "soft")
    queued = (await api.text2img(vae="soft", instant_response="yes")).json()
    assert queued["meta"]["vae"] == "soft"
    assert (await api.fetch(queued["id"], wait=10)).json()["meta"]["vae"] == "soft"
