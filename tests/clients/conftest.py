"""An environment with the public client libraries of the ModelsLab API, each of the version that is on the index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.served import KEY, ROOT, Server

#: Their pins; a change here makes the environment anew.
LIBRARIES = ("modelslab_py[async]==0.2.3", "modelslab==0.2", "StableDiffusionAPI==0.0.5")
DRIVERS = Path(__file__).parent / "drivers"
#: Set by CI, where libraries that cannot be installed are a fault.
REQUIRED = "REQUIRE_CLIENTS"


@pytest.fixture(scope="session")
def client_python() -> Path:
    """The Python of the environment; without a package index the tests are skipped, unless they are required."""
    folder = ROOT / ".venv-clients"
    python, stamp = folder / "bin" / "python", folder / "stamp"
    wanted = "\n".join((sys.version, *LIBRARIES))
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True)
    if made.returncode == 0:
        install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *LIBRARIES]
        made = subprocess.run(install, capture_output=True, text=True)
    if made.returncode != 0:
        message = f"the client libraries cannot be installed: {made.stderr[-500:]}"
        if os.environ.get(REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    stamp.write_text(wanted)
    return python


@pytest.fixture
def drive(client_python: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs a driver against a server; what it prints last, read as JSON."""

    def run(driver: str, server: Server, **variables: str) -> Any:
        environment = {"PATH": os.environ["PATH"], "URL": server.address, "KEY": KEY, **variables}
        command = [str(client_python), str(DRIVERS / driver)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run
