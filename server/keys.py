"""API keys: random, shown once, stored as hashes, with scopes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import string
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from server.database.connect import Database
from server.database.tables import api_keys
from server.errors import Unavailable

#: Makes leaked keys easy to find for scanners, as GitHub's do.
_PREFIX = "ltd_"
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
#: 62**43 > 2**256 and 62**6 > 2**32.
_RANDOM_LENGTH, _CHECK_LENGTH = 43, 6
#: Of a key, what listings show.
_SHOWN = 8
_LONGEST = 512

BOOTSTRAP = "bootstrap"
MIN_BOOTSTRAP_LENGTH = 16


class Scope(StrEnum):
    """What a key may be used for."""

    GENERATE = "generate"
    #: Loading and removing models and LoRAs.
    MODELS_WRITE = "models:write"
    #: Keys, other owners' jobs, the server itself.
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key as the server knows it: everything but the key."""

    #: ``Job.owner`` of what it submits; "bootstrap" for the key of the settings.
    id: str
    name: str
    scopes: frozenset[Scope]
    #: Unix seconds.
    created_at: float
    revoked_at: float | None = None
    #: The first characters, to recognise it by.
    prefix: str


class KeyStore:
    """Keys in the database, beside one bootstrap key that is not.

    The bootstrap key comes from the settings, else from ``key_file``, else it is made and written there, if no other
    key could be used. Nothing is cached: a key revoked here or by another process is refused at once.
    """

    def __init__(
        self,
        database: Database,
        *,
        bootstrap: str | None = None,
        key_file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._configured = bootstrap
        self._key_file = key_file
        self._clock = clock
        self._bootstrap: ApiKey | None = None
        self._bootstrap_digest = b""
        #: The key that this start made, to be printed once; ``key_file`` holds it from then on.
        self.generated: str | None = None
        #: The file whose key is in use; None when the operator set a key or made others.
        self.used_file: Path | None = None

    async def start(self) -> None:
        """Opens the database; finds or makes the bootstrap key. Raises ``Unavailable``."""
        await self._database.start()
        try:
            await self._find_bootstrap()
        except BaseException:
            await self._database.close()
            raise

    async def close(self) -> None:
        """Closes the database."""
        await self._database.close()

    async def add(self, name: str, scopes: Iterable[Scope] = (Scope.GENERATE,)) -> str:
        """Makes a key and returns it: the only time it can be read."""
        key = new_key()
        values = {
            "id": f"key_{secrets.token_hex(8)}",
            "name": name,
            "prefix": key[:_SHOWN],
            "digest": _digest(key).hex(),
            "scopes": sorted(scope.value for scope in scopes),
            "created_at": self._clock(),
        }
        statement = sa.insert(api_keys).values(values)
        await self._database.write(lambda connection: connection.execute(statement).rowcount)
        return key

    async def authenticate(self, key: str) -> ApiKey | None:
        """Whose key it is; None if it is unknown, revoked or no key at all."""
        if len(key) > _LONGEST:
            return None
        digest = _digest(key)
        if self._bootstrap is not None and hmac.compare_digest(digest, self._bootstrap_digest):
            return self._bootstrap
        if not is_key(key):
            return None
        statement = sa.select(api_keys).where(api_keys.c.digest == digest.hex(), api_keys.c.revoked_at.is_(None))
        row = await self._database.read(lambda connection: connection.execute(statement).one_or_none())
        if row is None or not hmac.compare_digest(row.digest, digest.hex()):
            return None
        return _api_key(row)

    async def list(self) -> list[ApiKey]:
        """All keys of the database, revoked ones too, oldest first."""
        statement = sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
        return await self._database.read(lambda connection: [_api_key(row) for row in connection.execute(statement)])

    async def revoke(self, key_id: str) -> bool:
        """From now on the key is refused; False if there is no such key in use."""
        statement = (
            sa.update(api_keys)
            .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=self._clock())
        )

        return await self._database.write(lambda connection: connection.execute(statement).rowcount) > 0

    async def _find_bootstrap(self) -> None:
        key = self._configured
        if key is None and self._key_file is not None:
            usable = any(key.revoked_at is None for key in await self.list())
            try:
                key, made = await asyncio.to_thread(_read_or_make, self._key_file, make=not usable)
            except OSError as error:
                raise Unavailable(f"The key file {self._key_file.name} can be neither read nor made") from error
            self.generated = key if made else None
            self.used_file = None if key is None else self._key_file
        if key is None:
            return
        if len(key) < MIN_BOOTSTRAP_LENGTH:
            raise Unavailable(f"The bootstrap key is shorter than {MIN_BOOTSTRAP_LENGTH} characters")
        self._bootstrap_digest = _digest(key)
        self._bootstrap = ApiKey(
            id=BOOTSTRAP,
            name=BOOTSTRAP,
            scopes=frozenset(Scope),
            created_at=self._clock(),
            # Of a password that somebody chose, eight characters would be too much to show.
            prefix=key[:_SHOWN] if is_key(key) else "",
        )


def new_key() -> str:
    """``ltd_``, 256 random bits and a checksum, in letters and digits."""
    body = _PREFIX + _base62(secrets.randbits(256), _RANDOM_LENGTH)
    return body + _checksum(body)


def is_key(key: str) -> bool:
    """Made by ``new_key``, as far as the checksum tells: typing errors cost no look-up."""
    body, checksum = key[:-_CHECK_LENGTH], key[-_CHECK_LENGTH:]
    right_length = len(key) == len(_PREFIX) + _RANDOM_LENGTH + _CHECK_LENGTH
    return right_length and key.isascii() and key.startswith(_PREFIX) and _checksum(body) == checksum


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode("ascii")), _CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def _digest(key: str) -> bytes:
    # Keys come in JSON bodies too, where lone surrogates are possible.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _read_or_make(file: Path, *, make: bool) -> tuple[str | None, bool]:
    """The key in the file, and whether it was made just now."""
    try:
        return file.read_text(encoding="utf-8").strip(), False
    except FileNotFoundError:
        if not make:
            return None, False
    key = new_key()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(key + "\n")
    return key, True


def _api_key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        prefix=row.prefix,
    )
