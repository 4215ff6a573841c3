"""API keys: shown once, stored hashed, revoked at once; and the bootstrap key."""

from __future__ import annotations

import re
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.database.connect import Database
from server.errors import Unavailable
from server.keys import BOOTSTRAP, KeyStore, Scope, is_key, new_key

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def keys(folder: Path, *, bootstrap: str | None = None, key_file: bool = False) -> AsyncIterator[KeyStore]:
    file = folder / "api_key" if key_file else None
    store = KeyStore(Database(folder / "latentd.db"), bootstrap=bootstrap, key_file=file, clock=lambda: 7.0)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def test_keys_carry_random_bits_and_a_checksum() -> None:
    key = new_key()
    assert re.fullmatch(r"ltd_[0-9A-Za-z]{49}", key)
    assert is_key(key)
    assert key != new_key()
    assert not is_key(key[:-1] + ("a" if key[-1] != "a" else "b"))


async def test_an_added_key_authenticates_with_its_scopes(tmp_path: Path) -> None:
    async with keys(tmp_path) as store:
        key = await store.add("laptop", [Scope.GENERATE, Scope.MODELS_WRITE])
        caller = await store.authenticate(key)
        assert caller is not None
        assert (caller.name, caller.created_at, caller.revoked_at, caller.prefix) == ("laptop", 7.0, None, key[:8])
        assert caller.scopes == {Scope.GENERATE, Scope.MODELS_WRITE}
        assert await store.list() == [caller]


async def test_keys_outlive_the_process(tmp_path: Path) -> None:
    async with keys(tmp_path) as store:
        key = await store.add("laptop")
    async with keys(tmp_path) as store:
        assert await store.authenticate(key) is not None


def written_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_nothing_on_disk_holds_a_key(tmp_path: Path) -> None:
    async with keys(tmp_path, bootstrap="correct horse battery") as store:
        key = await store.add("laptop")
        written = written_in(tmp_path)
    assert key.encode() not in written
    assert b"correct horse" not in written


@pytest.mark.parametrize("key", ["", "x", "ltd_", new_key(), new_key()[:-1] + "!", "k" * 1_000_000, "\ud800", "é" * 53])
async def test_other_keys_are_refused(tmp_path: Path, key: str) -> None:
    async with keys(tmp_path, bootstrap="correct horse battery") as store:
        assert await store.authenticate(key) is None


async def test_a_revoked_key_is_refused_at_once_and_stays_listed(tmp_path: Path) -> None:
    async with keys(tmp_path) as store, keys(tmp_path) as other:
        key = await store.add("laptop")
        (listed,) = await other.list()
        assert await other.revoke(listed.id)
        assert await store.authenticate(key) is None
        assert not await store.revoke(listed.id)
        assert [found.revoked_at for found in await store.list()] == [7.0]


async def test_the_configured_key_holds_all_scopes(tmp_path: Path) -> None:
    async with keys(tmp_path, bootstrap="correct horse battery", key_file=True) as store:
        caller = await store.authenticate("correct horse battery")
        assert caller is not None
        assert (caller.id, caller.scopes, caller.prefix) == (BOOTSTRAP, frozenset(Scope), "")
        assert store.generated is None
    assert not (tmp_path / "api_key").exists()


async def test_without_any_key_one_is_made_told_once_and_kept(tmp_path: Path) -> None:
    async with keys(tmp_path, key_file=True) as store:
        made = store.generated
        assert made is not None
        assert (await store.authenticate(made)) is not None
    file = tmp_path / "api_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    async with keys(tmp_path, key_file=True) as store:
        assert (store.generated, store.used_file) == (None, file)
        assert made == file.read_text().strip()
        assert (await store.authenticate(made)) is not None


async def test_operators_who_made_keys_get_no_other(tmp_path: Path) -> None:
    async with keys(tmp_path) as store:
        await store.add("laptop")
    async with keys(tmp_path, key_file=True) as store:
        assert store.generated is None
        (listed,) = await store.list()
        await store.revoke(listed.id)
    async with keys(tmp_path, key_file=True) as store:
        assert store.generated is not None


async def test_a_short_bootstrap_key_is_refused(tmp_path: Path) -> None:
    store = KeyStore(Database(tmp_path / "latentd.db"), bootstrap="short")
    with pytest.raises(Unavailable, match="shorter than 16"):
        await store.start()
