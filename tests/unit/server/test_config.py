"""Settings: precedence, defaults in the shipped file, and errors that say where to look."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from server.config import DEFAULT_FILE, ConfigError, Settings, without_empty


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("LATENTD_")]:
        monkeypatch.delenv(name)


def load(tmp_path: Path, text: str = "", **arguments: object) -> Settings:
    file = tmp_path / "server.toml"
    file.write_text(text)
    return Settings.load(file, **arguments)


def error(tmp_path: Path, text: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(tmp_path), "DIR")


def test_arguments_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTD_PORT", "2")
    monkeypatch.setenv("LATENTD_MAX_ROWS", "2")
    settings = load(tmp_path, "port = 3\nmax_rows = 3\nmax_attempts = 4", port=1, host=None)
    assert (settings.port, settings.max_rows, settings.max_attempts, settings.host) == (1, 2, 4, "127.0.0.1")


def test_sections_are_merged_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_MODELSLAB__MAX_STEPS", "20")
    section = load(tmp_path, '[modelslab]\nmax_steps = 30\nfailed_status = "failed"').modelslab
    assert (section.max_steps, section.failed_status) == (20, "failed")


def test_constructor_reads_neither_file_nor_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_PORT", "2")
    assert Settings().port == 8000


def test_shipped_file_shows_every_key_with_its_default() -> None:
    lines = DEFAULT_FILE.read_text().splitlines()
    keys = [line.removeprefix("# ") for line in lines if re.match(r"# (\w+ = |\[\w+\]$)", line)]
    shown = without_empty(tomllib.loads("\n".join(keys)))
    defaults: dict[str, Any] = Settings().model_dump(mode="json")
    assert Settings.load().model_dump(mode="json") == defaults
    assert Settings(**shown).model_dump(mode="json") == defaults
    names = set(tomllib.loads("\n".join(keys)))
    assert names == set(Settings.model_fields)
    assert set(shown["modelslab"]) == set(defaults["modelslab"])


def test_names_of_variables_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_API_KEY", "sixteen letters.")
    monkeypatch.setenv("LATENTD_PUBLIC_URL", "https://images.example.org/base/")
    monkeypatch.setenv("LATENTD_SYNC_WAIT_S", "2.5")
    monkeypatch.setenv("LATENTD_ALLOW_PRIVATE_HOSTS", "hooks.internal, 10.0.0.0/8,[::1]:9000")
    settings = load(tmp_path)
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "sixteen letters."
    assert settings.public_url == "https://images.example.org/base"
    assert settings.sync_wait_s == 2.5
    assert settings.allow_private_hosts == ("hooks.internal", "10.0.0.0/8", "[::1]:9000")


def test_empty_means_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_API_KEY", "")
    settings = load(tmp_path, 'public_url = ""')
    assert (settings.api_key, settings.public_url) == (None, None)


def test_variables_of_the_launcher_are_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_PYTHON", "/usr/bin/python3")
    assert load(tmp_path) == Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prot = 1", "DIR/server.toml: unknown key prot; did you mean port?"),
        ("[modelslab]\nmaxsteps = 1", "DIR/server.toml: unknown key modelslab.maxsteps; did you mean max_steps?"),
        ('port = "x"', "DIR/server.toml: port = 'x' is not usable: Input should be a valid integer"),
        ("sync_wait_s = nan", "DIR/server.toml: sync_wait_s = nan is not usable: Input should be a finite number"),
        ("modelslab = 3", "DIR/server.toml: modelslab = 3 is not usable"),
        ('public_url = "example.org"', "DIR/server.toml: public_url = 'example.org' is not usable: must be an http"),
        ('allow_private_hosts = ["http://a"]', "'http://a' is no host, address or network"),
        ('api_key = "hunter2"', "DIR/server.toml: api_key is not usable: it needs at least 16 characters"),
        ("port = ", "DIR/server.toml: not valid TOML"),
    ],
)
def test_wrong_file_is_told_in_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    message = error(tmp_path, text)
    assert expected in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LATENTD_PROT", "1", "environment: unknown variable LATENTD_PROT; did you mean LATENTD_PORT?"),
        ("LATENTD_MODELSLAB__MAX_STEP", "1", "did you mean LATENTD_MODELSLAB__MAX_STEPS?"),
        ("LATENTD_PORT", "x", "environment variable LATENTD_PORT: port = 'x' is not usable"),
        ("LATENTD_MODELSLAB__MAX_STEPS", "0", "environment variable LATENTD_MODELSLAB__MAX_STEPS: modelslab.max_steps"),
        ("LATENTD_WEBHOOK_DELAYS_S", "1,x", "environment variable LATENTD_WEBHOOK_DELAYS_S: webhook_delays_s.1 = 'x'"),
        ("LATENTD_API_KEY", "hunter2", "environment variable LATENTD_API_KEY: api_key is not usable"),
    ],
)
def test_wrong_variable_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    message = error(tmp_path)
    assert expected in message
    assert "hunter2" not in message


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        Settings.load(tmp_path / "none.toml")


def test_what_replaces_flagged_pictures_is_one_of_those_that_are_there(tmp_path: Path) -> None:
    section = load(tmp_path, '[safety]\ndefault = "yes"\nforce = true\ntype = "pixelate"').safety
    assert (section.default, section.force, section.type) == ("yes", True, "pixelate")
    assert "safety.type = 'pixelated' is not usable: no such replacement; did you mean pixelate?" in error(
        tmp_path, '[safety]\ntype = "pixelated"'
    )
    assert "safety.default = 'maybe' is not usable" in error(tmp_path, '[safety]\ndefault = "maybe"')
