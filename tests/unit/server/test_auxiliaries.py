"""What lies beside the models, told without loading it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from pipelines.auxiliary import AuxiliaryKind
from server.catalog.auxiliaries import Auxiliaries, Auxiliary


def safetensors(**metadata: str) -> bytes:
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": metadata, "x": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(found: tuple[Auxiliary, ...]) -> list[str]:
    return [one.name for one in found]


def test_whole_files_and_folders_are_listed_by_name(tmp_path: Path) -> None:
    auxiliaries = Auxiliaries(tmp_path)
    whole = safetensors()
    loras = tmp_path / "loras"
    assert auxiliaries.of(AuxiliaryKind.LORA) == ()
    for name in ("b.safetensors", "a.1.safetensors", ".hidden.safetensors"):
        put(loras, name, whole)
    put(loras, "half.safetensors", whole[:-1])
    put(loras, "a.1.latentd.json", b"{}")
    put(loras, ".c.part/c.safetensors", whole)
    put(loras, "peft/config.json", b"{}")
    put(loras, "peft/one.safetensors", whole)
    put(loras, "nothing/readme.txt", b"")
    found = auxiliaries.of(AuxiliaryKind.LORA)
    assert names(found) == ["a.1", "b", "peft"]
    assert (found[0].size, found[0].path) == (len(whole), loras / "a.1.safetensors")
    assert auxiliaries.of(AuxiliaryKind.VAE) == ()


def test_what_changes_is_read_again_and_what_goes_is_forgotten(tmp_path: Path) -> None:
    auxiliaries = Auxiliaries(tmp_path)
    whole = safetensors(ss_base_model_version="sd_v1")
    path = put(tmp_path / "loras", "a.safetensors", whole[:-2])
    assert auxiliaries.of(AuxiliaryKind.LORA) == ()
    path.write_bytes(whole)
    first = auxiliaries.of(AuxiliaryKind.LORA)[0]
    assert first.family == "sd15"
    # The same object: its header was not read again.
    assert auxiliaries.of(AuxiliaryKind.LORA)[0] is first
    path.write_bytes(safetensors(ss_base_model_version="sdxl_base_v1-0"))
    assert auxiliaries.of(AuxiliaryKind.LORA)[0].family == "sdxl"
    path.unlink()
    assert auxiliaries.of(AuxiliaryKind.LORA) == ()


@pytest.mark.parametrize(
    ("metadata", "family", "base", "triggers"),
    [
        ({}, None, None, ()),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl", "sdxl_base_v1-0", ()),
        ({"ss_base_model_version": "sd_v2"}, None, "sd_v2", ()),
        (
            {"modelspec.architecture": "Flux-1-dev/lora", "modelspec.trigger_phrase": "ohwx, man "},
            "flux",
            "Flux-1-dev/lora",
            ("ohwx", "man"),
        ),
        (
            {"ss_tag_frequency": json.dumps({"10_a": {"cat": 3, "ohwx": 9}, "b": {"cat": 12, " hat ": 1}})},
            None,
            None,
            ("cat", "ohwx", "hat"),
        ),
        ({"ss_tag_frequency": "{broken"}, None, None, ()),
        ({"ss_tag_frequency": '{"a": 1}'}, None, None, ()),
        ({"ss_tag_frequency": '[["a"]]'}, None, None, ()),
    ],
)
def test_files_tell_what_they_are_for(
    tmp_path: Path, metadata: dict[str, str], family: str | None, base: str | None, triggers: tuple[str, ...]
) -> None:
    put(tmp_path / "loras", "a.safetensors", safetensors(**metadata))
    one = Auxiliaries(tmp_path).of(AuxiliaryKind.LORA)[0]
    assert (one.family, one.base, one.triggers) == (family, base, triggers)


def test_a_pickle_is_named_in_the_log_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "server.catalog")
    auxiliaries = Auxiliaries(tmp_path)
    path = put(tmp_path / "embeddings", "easy.pt", b"")
    for _ in range(2):
        assert auxiliaries.find(AuxiliaryKind.EMBEDDING, "easy") is None
        assert auxiliaries.of(AuxiliaryKind.EMBEDDING) == ()
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"{path} is not used: it can run code when it is opened; ./latentd convert makes a .safetensors of it"
    ]


def test_what_is_there_is_found_without_a_look_at_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "vaes", "old.ckpt", b"")
    path = put(tmp_path / "vaes", "soft.safetensors", safetensors())
    assert Auxiliaries(tmp_path).find(AuxiliaryKind.VAE, "soft") == path
    assert caplog.records == []


def test_a_file_that_is_found_at_every_request_is_read_once_until_it_changes(tmp_path: Path) -> None:
    auxiliaries, whole = Auxiliaries(tmp_path), safetensors()
    path = put(tmp_path / "loras", "a.safetensors", whole[:-1])
    assert auxiliaries.find(AuxiliaryKind.LORA, "a") is None
    path.write_bytes(whole)
    assert auxiliaries.find(AuxiliaryKind.LORA, "a.safetensors") == path
    date = path.stat().st_mtime_ns
    path.write_bytes(bytes(len(whole)))
    # Nobody who writes a file sets its date back: that it is still found shows that it was not opened again.
    os.utime(path, ns=(date, date))
    assert auxiliaries.find(AuxiliaryKind.LORA, "a") == path
    os.utime(path, ns=(date, date + 1))
    assert auxiliaries.find(AuxiliaryKind.LORA, "a") is None


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "../loras/a", "/a", "a/", "*", "A"])
def test_names_that_are_no_entrys_lead_nowhere(tmp_path: Path, name: str) -> None:
    for file in ("a", ".hidden", ""):
        put(tmp_path / "loras", f"{file}.safetensors", safetensors())
    assert Auxiliaries(tmp_path).find(AuxiliaryKind.LORA, name) is None
