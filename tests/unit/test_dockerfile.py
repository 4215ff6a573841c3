"""Dockerfile.cuda cannot be built here: its paths, names and commands are compared with the repository instead."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from typer.main import get_command

from server.__main__ import app
from server.config import PREFIX, ROOT, Settings

FILE = ROOT / "Dockerfile.cuda"
IGNORED = (ROOT / ".dockerignore").read_text().split()


def instructions() -> list[tuple[str, str]]:
    """(name, arguments) in order; lines that end in a backslash are joined."""
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    return [
        (name, " ".join(arguments.split()))
        for name, _, arguments in (line.partition(" ") for line in "\n".join(lines).replace("\\\n", " ").splitlines())
    ]


def all_of(name: str) -> list[str]:
    return [arguments for found, arguments in instructions() if found == name]


def only(name: str) -> str:
    (arguments,) = all_of(name)
    return arguments


def index(name: str, start: str) -> int:
    return next(i for i, one in enumerate(instructions()) if one[0] == name and one[1].startswith(start))


def is_ignored(path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in IGNORED)


def test_the_base_is_cuda_of_a_fixed_version() -> None:
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", only("FROM"))


def test_what_is_copied_is_there_and_not_ignored() -> None:
    for arguments in all_of("COPY"):
        *sources, _ = arguments.split()
        for source in sources:
            assert (ROOT / source).exists()
            # The whole checkout is "."; the next test looks into it.
            assert source == "." or not is_ignored(source)


@pytest.mark.parametrize("path", ["server", "pipelines", "schedulers", "configs", "latentd", "README.md", "LICENSE"])
def test_what_a_server_needs_is_not_ignored(path: str) -> None:
    assert (ROOT / path).exists()
    assert not is_ignored(path)


@pytest.mark.parametrize("path", [".git", ".venv", ".venv.log", "data", "tests"])
def test_what_is_no_part_of_the_image_is_ignored(path: str) -> None:
    assert is_ignored(path)


def test_dependencies_are_installed_before_the_code_comes() -> None:
    first, second = all_of("COPY")
    assert first.split() == ["latentd", "pyproject.toml", "constraints.txt", "./"]
    assert second == ". ."
    install = index("RUN", "PIP_NO_CACHE_DIR=1 ./latentd install")
    assert index("COPY", "latentd") < install < index("COPY", ". .")
    launcher = (ROOT / "latentd").read_text()
    assert "\n    install) ensure run ;;\n" in launcher
    # What the launcher installs from is copied with it.
    assert set(re.findall(r"\$root/([\w.]+\.(?:toml|txt))", launcher)) == {"pyproject.toml", "constraints.txt"}


def test_ubuntus_python_suffices() -> None:
    assert {"python3", "python3-venv"} <= set(instructions()[index("RUN", "apt-get")][1].split())
    # Ubuntu 24.04 has 3.12.
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()


def test_it_runs_as_nobody_special() -> None:
    user = only("USER")
    assert user not in ("root", "0")
    assert index("RUN", "useradd") < index("USER", user) < index("ENTRYPOINT", "[")
    assert instructions()[index("RUN", "useradd")][1].startswith(f"useradd --system --create-home {user} ")


def test_the_command_is_one_of_ours() -> None:
    (launcher,) = json.loads(only("ENTRYPOINT"))
    assert launcher == f"{only('WORKDIR')}/latentd"
    assert (ROOT / "latentd").stat().st_mode & 0o111
    commands = get_command(app).commands  # type: ignore[attr-defined]
    (command,) = json.loads(only("CMD"))
    assert command in commands
    said = re.findall(r"latentd-data:/data latentd (\w+)", FILE.read_text())
    assert said == ["pull"]
    assert set(said) <= set(commands)


def test_variables_are_settings_and_data_is_the_volume() -> None:
    variables = dict(part.split("=", 1) for part in only("ENV").split())
    assert variables == {"LATENTD_HOST": "0.0.0.0", "LATENTD_DATA": "/data"}
    assert {name.removeprefix(PREFIX).lower() for name in variables} <= set(Settings.model_fields)
    assert only("VOLUME") == variables["LATENTD_DATA"]
    assert f"chown {only('USER')}: {only('VOLUME')}" in instructions()[index("RUN", "useradd")][1]


def test_the_health_check_asks_a_route_on_the_port_that_is_listened_on() -> None:
    check = only("HEALTHCHECK")
    port = str(Settings.model_fields["port"].default)
    assert only("EXPOSE") == port
    found = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", check)
    assert found is not None
    assert found.group(1) == port
    assert f'"{found.group(2)}": self.' in (ROOT / "server/api/health.py").read_text()
    python = json.loads(check[check.index("[") :])[0]
    assert python == f"{only('WORKDIR')}/.venv/bin/python"
    compile(json.loads(check[check.index("[") :])[2], "healthcheck", "exec")
    assert Path(python).name == "python"
