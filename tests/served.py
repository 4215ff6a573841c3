"""Real servers for tests: processes started as a user would, ended by their own id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEY = "a-key-for-tests-0123456789"
#: A first start makes the demo checkpoint and imports torch, on a machine that may be busy.
START_S = 90.0


class Server:
    """``python -m server serve`` on a free port."""

    def __init__(self, data: Path, **environment: str) -> None:
        self.data = data
        self.log = data.parent / f"{data.name}.log"
        self._log_start = len(self.log.read_text(errors="replace")) if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve", "--port", "0", "--data", str(data)],
                cwd=ROOT,
                env={**os.environ, "LATENTD_API_KEY": KEY, "PYTHONUNBUFFERED": "1", **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.address = self._wait_until_ready()

    def _wait_until_ready(self) -> str:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            address = self._address()
            if address is not None and self.get(address + "/ready")[0] == 200:
                return address
            time.sleep(0.1)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-4000:]}")

    def _address(self) -> str | None:
        """What this process has printed; a log may begin with an earlier one's lines."""
        text = self.log.read_text(errors="replace")[self._log_start :]
        lines = [line for line in text.splitlines() if line.startswith("latentd is listening on")]
        return lines[0].split()[-1] if lines else None

    def get(self, url: str) -> tuple[int, bytes]:
        """Status and body."""
        return self._open(urllib.request.Request(url if "://" in url else self.address + url))

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The JSON answer of a ModelsLab call with the key in its body."""
        data = json.dumps({"key": KEY, **body}).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        answer: dict[str, Any] = json.loads(self._open(request)[1])
        return answer

    def _open(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status), bytes(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def kill(self) -> None:
        """As if the power went off."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """As an operator does; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
