"""One contract for all image stores; then what only a folder can get wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from server.errors import Unavailable
from server.storage.base import ImageStore, StoredImage
from server.storage.local import LocalImageStore
from server.storage.names import new_name

pytestmark = pytest.mark.anyio

BACKENDS: dict[str, Callable[[Path], ImageStore]] = {"local": lambda folder: LocalImageStore(folder / "images")}

MALFORMED = [
    "",
    ".",
    "..",
    "a.png",
    "../" + new_name(0),
    "/etc/passwd",
    new_name(0) + "/",
    new_name(0) + "\0",
    new_name(0).replace(".png", ".html"),
    "temp/../" + new_name(0),
    "temp/temp/" + new_name(0),
    new_name(0).replace(".png", ".base64"),
    "." + new_name(0) + ".tmp",
    "x" * 10_000,
    "\ud800",
]


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    store = BACKENDS[request.param](tmp_path)
    await store.start()
    return store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_what_was_put_can_be_read(store: ImageStore) -> None:
    name = new_name(0, "webp")
    await store.put(name, b"picture")
    found = await store.get(name)
    assert found is not None
    assert (found.size, found.media_type, found.path.read_bytes()) == (7, "image/webp", b"picture")


async def test_a_rerun_overwrites(store: ImageStore) -> None:
    name = new_name(0)
    await asyncio.gather(*(store.put(name, b"same bytes") for _ in range(8)))
    await store.put(name, b"other")
    found = await store.get(name)
    assert found is not None
    assert found.path.read_bytes() == b"other"


async def test_temporary_pictures_are_told_apart_by_name_and_age(store: ImageStore) -> None:
    lasting, temporary = new_name(0), new_name(0, "jpg", temporary=True)
    for name in (lasting, temporary):
        await store.put(name, b"1234567")
    stored = await store.get(temporary)
    assert stored is not None and stored.media_type == "image/jpeg"
    assert await store.temporary(before=stored.modified) == []
    assert await store.temporary(before=stored.modified + 1) == [temporary]
    assert await store.used_bytes() == 14
    await store.delete(temporary)
    assert (await store.get(temporary), await store.used_bytes()) == (None, 7)


async def test_deleting_twice_is_no_error(store: ImageStore) -> None:
    name = new_name(0)
    await store.put(name, b"x")
    await store.delete(name)
    await store.delete(name)
    assert await store.get(name) is None


async def test_unknown_names_are_none(store: ImageStore) -> None:
    assert await store.get(new_name(0)) is None


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_names_are_refused(store: ImageStore, name: str) -> None:
    assert await store.get(name) is None
    await store.delete(name)
    with pytest.raises(ValueError, match="no image name"):
        await store.put(name, b"x")


async def test_starting_again_keeps_images_and_removes_what_a_crash_left(tmp_path: Path) -> None:
    name = new_name(0)
    store = LocalImageStore(tmp_path)
    await store.put(name, b"x")
    (tmp_path / f".{new_name(1)}.0123.tmp").write_bytes(b"half")
    await store.start()
    assert names(tmp_path) == [name, "temp"]


async def test_symlinks_are_not_read_and_not_written_through(tmp_path: Path) -> None:
    secret, name = tmp_path / "secret", new_name(0)
    secret.write_bytes(b"secret")
    store = LocalImageStore(tmp_path / "images")
    await store.start()
    (tmp_path / "images" / name).symlink_to(secret)
    assert await store.get(name) is None
    await store.put(name, b"picture")
    assert secret.read_bytes() == b"secret"
    found = await store.get(name)
    assert found is not None
    path = tmp_path / "images" / name
    assert found == StoredImage(path=path, size=7, media_type="image/png", modified=path.stat().st_mtime)


async def test_folders_are_no_images(tmp_path: Path) -> None:
    name = new_name(0)
    (tmp_path / name).mkdir()
    store = LocalImageStore(tmp_path)
    assert await store.get(name) is None
    with pytest.raises(Unavailable):
        await store.put(name, b"x")
    assert names(tmp_path) == [name]


async def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalImageStore(tmp_path / "file" / "images")
    with pytest.raises(Unavailable):
        await store.start()
    with pytest.raises(Unavailable):
        await store.put(new_name(0), b"x")
