"""What nobody would send, sent: no answer is a fault of ours, and each is in the shape of its dialect."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from pydantic import SecretStr

from server.app import build_app
from server.config import Settings
from server.engine.executors.stub import StubExecutor

pytestmark = pytest.mark.slow

KEY = "a-key-for-fuzzing-0123456789"
#: Cases by the schema, shared among its operations, and of each drawing endpoint with values of our own.
CASES, OWN = 2600, 250
QUIET = settings(
    deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
)
#: Drawing endpoints, and fields that a schema alone would never fill with something that is meant.
DRAWING = ("text2img", "img2img", "inpaint")


def serve(app: Any, listening: socket.socket) -> Any:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and time.monotonic() < end:
        time.sleep(0.05)
    assert server.started
    return server, thread


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """Of a whole server with a stub in place of the device."""
    values = Settings(data=tmp_path_factory.mktemp("data"), api_key=SecretStr(KEY), max_queued_jobs_per_key=10_000)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server, thread = serve(build_app(values, executor=StubExecutor()), listening)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx2.Client(base_url=address, headers={"key": KEY}, timeout=60) as client:
            yield client
        server.should_exit = True
        thread.join(30)


def check(path: str, status: int, kind: str, content: bytes) -> None:
    """Raises AssertionError for a fault of ours and for a shape that the path's clients do not know."""
    told = f"{path} -> {status} {content[:300]!r}"
    assert status < 500, told
    if kind.partition(";")[0] != "application/json":
        # Pictures and pages; errors are always JSON, which a HEAD has none of.
        assert status < 400 or not content, told
        return
    body: Any = json.loads(content) if content else None
    if path.startswith("/api/"):
        assert type(body) in (dict, list), told
        if status >= 400 or (type(body) is dict and body.get("status") in ("error", "failed")):
            check_refusal(body, told)
    elif status >= 400 and body is not None:
        assert isinstance(body["error"]["code"], str) and isinstance(body["error"]["message"], str), told


def check_refusal(body: dict[str, Any], told: str) -> None:
    assert body["status"] in ("error", "failed"), told
    assert isinstance(body["message"], str) and body["message"] == body["messege"], told
    assert all(isinstance(one, str) for one in body.get("output", [])), told


def check_answer(path: str, answer: httpx2.Response) -> None:
    check(path, answer.status_code, answer.headers.get("content-type", ""), answer.content)


def test_every_operation_of_the_schema_survives_what_the_schema_allows_and_what_it_does_not(
    client: httpx2.Client,
) -> None:
    import schemathesis
    from schemathesis import GenerationMode

    raw = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(raw)
    sent = 0
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]

    def send(sample: tuple[str, Any]) -> None:
        nonlocal sent
        sent += 1
        path, case = sample
        case.headers = {**dict(case.headers or {}), "key": KEY}
        answer = case.call(base_url=str(client.base_url))
        check(path, answer.status_code, "".join(answer.headers.get("content-type", [])), answer.content)

    # Half of them sent as the schema allows, half as it does not; some operations have fewer different ones.
    each = CASES // (2 * len(operations)) + 20
    for operation in operations:
        for mode in GenerationMode:
            cases = st.tuples(st.just(operation.path), operation.as_strategy(generation_mode=mode))
            # An operation without parameters and body has nothing that could be sent wrongly.
            with suppress(Unsatisfiable):
                settings(QUIET, max_examples=each)(given(cases)(send))()
    assert sent >= 2000, f"{sent} cases of {len(operations)} operations"


def png() -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 90, dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


HUGE = st.integers(min_value=-(10**400), max_value=10**400) | st.sampled_from([2**31, 2**63, 2**64, -1, 0, 10**4299])
NUMBERS = HUGE | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([1e308, -0.0, 5e-324])
WORDS = st.text(max_size=60) | st.sampled_from(
    ["", " ", "yes", "NO", "null", "none", "undefined", "\x00", "\u202e", "🙂" * 20, "((((", "(x:1e9)", "a" * 20_000]
)
PICTURES = st.one_of(
    st.just(png()),
    st.binary(max_size=200).map(lambda data: base64.b64encode(data).decode()),
    st.binary(max_size=60).map(lambda data: "data:image/png;base64," + base64.b64encode(data).decode()),
    st.sampled_from(["http://127.0.0.1/x.png", "file:///etc/passwd", "http://[::1]/", "ftp://x", "data:,", "https://"]),
)
NESTED = st.recursive(
    WORDS | NUMBERS | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
DEEP = st.integers(1, 300).map(lambda depth: json.loads("[" * depth + "]" * depth))
VALUES = st.one_of(NUMBERS, NUMBERS.map(str), WORDS, PICTURES, NESTED, DEEP)


@pytest.mark.parametrize("task", DRAWING)
def test_drawing_survives_values_of_any_kind(client: httpx2.Client, task: str) -> None:
    schema = client.get("/openapi.json").json()["paths"][f"/api/v6/images/{task}"]["post"]
    fields = sorted(schema["requestBody"]["content"]["application/json"]["schema"]["properties"])
    meant = {"prompt": "a bridge", "model_id": "sd15", "width": 64, "height": 64, "num_inference_steps": 2}
    if task != "text2img":
        meant["init_image"] = png()
    if task == "inpaint":
        meant["mask_image"] = png()
    hostile = st.dictionaries(st.sampled_from(fields) | st.text(max_size=10), VALUES, min_size=1, max_size=4)
    reached = 0

    @settings(QUIET, max_examples=OWN)
    @given(hostile)
    def send(values: dict[str, Any]) -> None:
        nonlocal reached
        content = json.dumps({**meant, **values}).encode("utf-8", "replace")
        path = f"/api/v6/images/{task}"
        answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
        reached += answer.status_code == 200
        check_answer(path, answer)

    send()
    # Most fields forgive most values: what never gets past the reading of the body would test nothing.
    assert reached > OWN // 10


@given(st.binary(max_size=300), st.sampled_from(["application/json", "text/plain", "multipart/form-data; boundary=x"]))
@settings(QUIET, max_examples=OWN)
def test_bodies_that_are_no_bodies(client: httpx2.Client, body: bytes, kind: str) -> None:
    path = "/api/v6/images/text2img"
    check_answer(path, client.post(path, content=body, headers={"Content-Type": kind}))
