"""Where the safety checker is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.model import ModelSpec
from pipelines.registry import FAMILIES
from pipelines.safety import CheckerFiles
from server.catalog import Catalog
from server.catalog.checker import find_checker
from server.config import ROOT, ConfigError

DEMO = ModelSpec(id="sd15", family="sd15", folder=Path("demo/sd15"), demo="sd15")
REAL = ModelSpec(id="sdxl", family="sdxl", folder=Path("models/sdxl"))


def put_checker(folder: Path, *, name: str = "model.safetensors") -> None:
    """The files, whole, with one number as weights."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for part, file in (("safety_checker", "config.json"), ("feature_extractor", "preprocessor_config.json")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / file).write_text("{}")
    (folder / "safety_checker" / name).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def find(models: Path, *offered: ModelSpec, told: list[str] | None = None) -> CheckerFiles | None:
    def report(file: Path, error: ConfigError | None) -> None:
        if error is not None and told is not None:
            told.append(str(error))

    return find_checker(models, offered, report)


@pytest.mark.parametrize("name", ["anything", "owner/name"])
def test_any_checkpoints_checker_serves_all_models(tmp_path: Path, name: str) -> None:
    put_checker(tmp_path / name)
    assert find(tmp_path, REAL) == CheckerFiles(folder=tmp_path / name)


def test_the_demos_checker_serves_demos_only(tmp_path: Path) -> None:
    assert find(tmp_path, DEMO) == CheckerFiles(folder=DEMO.folder, demo="sd15")
    assert find(tmp_path, DEMO, REAL) is None
    assert find(tmp_path) is None


@pytest.mark.parametrize("lost", ["safety_checker/config.json", "feature_extractor/preprocessor_config.json"])
def test_an_incomplete_checker_is_none(tmp_path: Path, lost: str) -> None:
    put_checker(tmp_path / "sd15")
    (tmp_path / "sd15" / lost).unlink()
    assert find(tmp_path, REAL) is None


def test_a_copy_under_way_is_none(tmp_path: Path) -> None:
    put_checker(tmp_path / "sd15")
    file = tmp_path / "sd15/safety_checker/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert find(tmp_path, REAL) is None


def test_a_pickled_checker_is_reported_and_never_opened(tmp_path: Path) -> None:
    put_checker(tmp_path / "sd15", name="pytorch_model.bin")
    told: list[str] = []
    assert find(tmp_path, REAL, told=told) is None
    assert "pytorch_model.bin" in told[0]


def test_a_checker_is_found_and_lost_without_a_restart(tmp_path: Path) -> None:
    now = [0.0]
    catalog = Catalog.load(configs=ROOT / "configs", data=tmp_path, families=FAMILIES, clock=lambda: now[0])

    def found() -> CheckerFiles | None:
        now[0] += 10
        return catalog.checker()

    demo = CheckerFiles(folder=tmp_path / "demo" / "sd15", demo="sd15")
    assert found() == demo
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert found() == demo
    put_checker(tmp_path / "models" / "mine")
    assert found() == CheckerFiles(folder=tmp_path / "models" / "mine")
    shutil.rmtree(tmp_path / "models" / "mine" / "safety_checker")
    assert found() == demo
