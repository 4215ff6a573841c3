"""Probes, metrics, files, and who may see what without a key."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import RouteContext, iter_route_contexts
from typer.testing import CliRunner

from server.__main__ import app as command_line
from server.api import DIALECTS
from server.engine.executors.stub import StubExecutor

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
Serve = Callable[..., AbstractAsyncContextManager[Any]]

#: Every route that answers without a key.
OPEN = {"/", "/health", "/ready", "/up", "/generations/{name}", "/temp/{name}"}


async def test_probes_are_answered_without_a_key(api: Any) -> None:
    assert (await api.client.get("/")).json()["name"] == "latentd"
    assert (await api.client.head("/")).status_code == 200
    assert (await api.client.get("/up")).text == "OK"
    assert (await api.client.get("/ready")).json() == {"ready": True}
    health = (await api.client.get("/health/")).json()
    assert (health["status"], bool(re.fullmatch(r"\d+\.\d+\.\d+", health["version"]))) == ("ok", True)
    assert health["models"][0] == {"id": "sd15", "family": "sd15", "demo": True, "note": "A demo model draws."}


async def test_a_server_that_cannot_draw_is_not_ready(api: Any) -> None:
    await api.executor.close()
    answer = await api.client.get("/ready")
    assert (answer.status_code, answer.json()["reason"]) == (503, "the device thread does not run")
    api.parts.service.drain()
    answer = await api.client.get("/ready")
    assert (answer.status_code, answer.json()["reason"]) == (503, "not accepting requests")


async def test_metrics_count_jobs_steps_and_answers(api: Any) -> None:
    await api.text2img(num_inference_steps=3, samples=2)
    await api.client.post("/api/v6/images/text2img")
    text = (await api.client.get("/metrics", headers={"key": api.key})).text
    for line in (
        'latentd_jobs{state="succeeded"} 1.0',
        "latentd_queue_depth 0.0",
        "latentd_engine_oldest_wait_seconds 0.0",
        "latentd_steps_total 6.0",
        'latentd_rows_per_forward_bucket{le="+Inf"} 6.0',
        'latentd_http_requests_total{code="200",dialect="modelslab"} 1.0',
        'latentd_http_requests_total{code="401",dialect="modelslab"} 1.0',
    ):
        assert line in text.splitlines()


async def test_docs_describe_the_api(api: Any) -> None:
    page = await api.client.get("/docs", params={"key": api.key})
    assert page.status_code == 200
    assert api.key not in page.text
    schema = (await api.client.get("/openapi.json", params={"key": api.key})).json()
    assert "/api/v6/images/text2img" in schema["paths"]


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/openapi.json"])
async def test_operators_may_open_metrics_and_docs(serve: Serve, path: str) -> None:
    async with serve(public_docs=True, public_metrics=True) as api:
        assert (await api.client.get(path)).status_code == 200


async def test_every_route_is_open_on_purpose_or_asks_for_a_key(api: Any) -> None:
    routes = [(route.path or "", method) for route in walk(api) for method in sorted(route.methods or ())]
    for path, method in routes:
        answer = await api.client.request(method, path.replace("{", "").replace("}", ""))
        if path in OPEN:
            assert answer.status_code in (200, 404), (method, path)
            continue
        assert answer.status_code == 401, (method, path)
        if method != "HEAD":
            assert ("status" if path.startswith("/api/") else "error") in answer.json()
    assert {path for path, _ in routes} > OPEN


def walk(api: Any) -> list[RouteContext]:
    """All routes, however deep the routers nest."""
    return list(iter_route_contexts(api.app.routes))


async def test_files_cannot_do_anything_in_a_browser(api: Any) -> None:
    link = (await api.text2img()).json()["output"][0]
    answer = await api.client.get(link)
    name = link.rpartition("/")[2]
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == f'inline; filename="{name}"'
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert "immutable" in answer.headers["cache-control"]
    head = await api.client.head(link)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(answer.content)), b"")
    part = await api.client.get(link, headers={"range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")


@pytest.mark.parametrize("name", ["x.png", "..%2F..%2Flatentd.db", "0-" + "0" * 32 + ".png", "%00", ".png", "a/b"])
async def test_no_other_file_is_served(api: Any, name: str) -> None:
    answer = await api.client.get(f"/generations/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_paths_of_nobody_answer_in_our_own_shape(api: Any) -> None:
    answer = await api.client.get("/nothing")
    assert (answer.status_code, answer.json()) == (404, {"error": {"code": "not_found", "message": "Not found"}})
    assert (await api.client.post("/health")).status_code == 405


async def test_the_table_of_dialects_holds_their_names(api: Any) -> None:
    assert {name: dialect.name for name, dialect in api.parts.dialects.items()} == {name: name for name in DIALECTS}


async def test_waiting_requests_show_in_metrics(serve: Serve) -> None:
    async with serve(StubExecutor(held=True), sync_wait_s=0.05, public_metrics=True) as api:
        await api.text2img()
        text = (await api.client.get("/metrics")).text
        assert 'latentd_jobs{state="queued"} 1.0' in text
        assert "latentd_engine_waiting_requests 1.0" in text


def test_the_http_side_costs_no_torch() -> None:
    heavy = "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    command = [sys.executable, "-c", f"import sys, server.app; {heavy}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# The command line


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


def test_help_names_the_commands() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert "serve" in result.stdout and "keys" in result.stdout


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    result = run("serve", "--data", str(tmp_path), LATENTD_PORT="many")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "LATENTD_PORT" in result.stderr


def test_a_busy_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("serve", "--data", str(tmp_path), "--port", port)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"latentd: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    def keys(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(command_line, ["keys", *arguments, "--data", str(tmp_path)])
        return result.exit_code, result.output

    _, key = keys("add", "guest", "--scope", "generate", "--scope", "admin")
    assert key.startswith("ltd_")
    _, listed = keys("list")
    assert "guest" in listed and key.strip() not in listed
    key_id = re.search(r"key_[0-9a-f]{16}", listed)
    assert key_id is not None
    assert keys("revoke", key_id[0]) == (0, f"{key_id[0]} revoked\n")
    assert keys("revoke", key_id[0]) == (1, f"latentd: no key {key_id[0]} in use\n")
    assert keys("add", "x", "--scope", "everything")[0] == 2


def start_and_stop(folder: Path) -> str:
    """What a server says before it is ready."""
    command = [sys.executable, "-u", "-m", "server", "serve", "--port", "0", "--data", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        said = ""
        while not said.rpartition("\n")[2].startswith("Try: "):
            line = server.stdout.readline()
            assert line, server.stderr.read()
            said += ("\n" if said else "") + line.strip()
        server.send_signal(signal.SIGTERM)
        errors = server.stderr.read()
    assert server.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in errors
    return said


def test_serve_says_how_to_use_it_and_stops_on_sigterm(tmp_path: Path) -> None:
    said = start_and_stop(tmp_path)
    key = (tmp_path / "api_key").read_text().strip()
    assert re.match(r"latentd is listening on http://127\.0\.0\.1:\d+\n", said)
    assert f"API key: {key}\n" in said
    assert "Demo models stand in" in said
    assert '"model_id": "sd15"' in said
    assert f'"key": "{key}"' in said
    again = start_and_stop(tmp_path)
    assert key not in again
    assert f"API key: in {tmp_path / 'api_key'}\n" in again
