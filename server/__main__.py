"""The command line. Heavy imports wait inside the functions: --help answers at once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from server.app import Parts
    from server.catalog import Catalog
    from server.catalog.auxiliary_files import AuxiliaryFile
    from server.config import Settings
    from server.keys import ApiKey, KeyStore

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="latentd")
keys = typer.Typer(no_args_is_help=True, help="API keys of this data folder.")
app.add_typer(keys, name="keys")

_Config = Annotated[Path | None, typer.Option(help="TOML file with settings; default configs/server.toml.")]
_Data = Annotated[Path | None, typer.Option(help="Folder for database, images and weights; default ./data.")]

#: Seconds that open connections get after SIGTERM; those that wait for pictures are answered at once.
_SHUTDOWN_S = 10
#: Bytes of a request's first line and headers; what one read brings beyond is let through.
_LONGEST_HEAD = 64 * 1024


@app.command()
def serve(
    config: _Config = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default 8000, 0 for any free one.")] = None,
    data: _Data = None,
) -> None:
    """Run the server."""
    settings = _load(config, host=host, port=port, data=data)
    listener = _listen(settings.host, settings.port)
    _serve(settings, listener)


@app.command()
def pull(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Models, what is beside models, or hub ids: owner/name.")
    ],
    family: Annotated[
        str | None, typer.Option(help="For a hub id in no model file: sd15, sdxl, flux, florence2.")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Move to the newest commit.")] = False,
    no_checker: Annotated[bool, typer.Option("--no-checker", help="Leave the safety checker out.")] = False,
    config: _Config = None,
    data: _Data = None,
) -> None:
    """Fetch real weights from the Hugging Face hub; what a killed pull has fetched is kept."""
    from rich.console import Console

    from server.pull import PullError
    from server.pull import pull as pull_model
    from server.pull.bars import Bars

    settings = _load(config, data=data)
    catalog, auxiliaries = _load_catalog(settings), _load_auxiliary_files()
    console = Console()
    pull_one = partial(pull_model, family=family, update=update, checker=not no_checker)
    try:
        for name in names:
            with Bars(console) as bars:
                pulled = pull_one(name, catalog, auxiliaries, settings.data, bars)
            console.print(f"{pulled.id} {'is ready' if pulled.came else 'was here already'}", highlight=False)
            for warning in pulled.warnings:
                typer.echo(f"latentd: {warning}", err=True)
    except PullError as error:
        _exit(str(error), code=1)
    except KeyboardInterrupt:
        _exit("stopped; the next pull goes on from here", code=130)


@app.command("models")
def list_models(config: _Config = None, data: _Data = None) -> None:
    """Show all models and what is beside them: whether weights are here, their size, licence and origin."""
    from rich.console import Console
    from rich.table import Column, Table

    from pipelines.registry import FAMILIES
    from server.pull.overview import Row, auxiliary_overview, overview

    settings = _load(config, data=data)
    catalog = _load_catalog(settings)

    def show(rows: list[Row], *names: str) -> None:
        columns = (Column(name, overflow="fold") for name in ("state", "size", "from", "licence"))
        table = Table(*(Column(name, no_wrap=True) for name in names), *columns, box=None)
        for row in rows:
            size = _amount(row.size) if row.size else f"({_amount(int(row.pull_gb * 1e9))})" if row.pull_gb else ""
            first = (row.id, row.kind)[: len(names)]
            table.add_row(*first, row.state, size, f"{row.hub}@{row.commit}".removesuffix("@"), row.licence)
        Console().print(table)

    show(overview(catalog, settings.data, FAMILIES), "model")
    show(auxiliary_overview(catalog, _load_auxiliary_files(), settings.data), "beside models", "kind")


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A .pth, .pt, .ckpt or .bin file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File or folder; default beside FILE.")] = None,
) -> None:
    """Make a .safetensors of a file of torch's; what it wants run is never run."""
    from server.convert import ConvertError
    from server.convert import convert as convert_file

    try:
        done = convert_file(file, out)
    except ConvertError as error:
        _exit(str(error), code=1)
    except KeyboardInterrupt:
        _exit("stopped; nothing was written", code=130)
    typer.echo(f"{done.file}: {done.tensors} tensor{'' if done.tensors == 1 else 's'}")
    for note in done.notes:
        typer.echo(note)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A picture that latentd or AUTOMATIC1111 has drawn.")],
    url: Annotated[str | None, typer.Option(help="The server; default the one of the settings.")] = None,
    key: Annotated[
        str | None, typer.Option(help="API key; default the data folder's.", envvar="LATENTD_API_KEY")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the new picture; default FILE with .replay before its ending.")
    ] = None,
    config: _Config = None,
    data: _Data = None,
) -> None:
    """Draw a picture again by what stands inside its file, and say how much the two differ."""
    import httpx2

    from server.replay import ReplayError
    from server.replay import replay as draw_again

    settings = _load(config, data=data)
    key_file = settings.data / "api_key"
    key = key or (key_file.read_text().strip() if key_file.is_file() else "")
    target = out or file.with_name(f"{file.stem}.replay{file.suffix}")
    address = url or settings.public_url or f"http://{settings.host}:{settings.port}"
    try:
        with httpx2.Client(base_url=address, headers={"X-API-Key": key}, timeout=60) as client:
            new = draw_again(file, client, say=typer.echo)
        target.write_bytes(new.data)
    except (ReplayError, OSError) as error:
        _exit(str(error), code=1)
    for warning in new.warnings:
        typer.echo(warning)
    same = "of another size" if new.difference is None else f"largest difference {new.difference} of 255"
    typer.echo(f"{target}: {same}")


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    scope: Annotated[list[str] | None, typer.Option(help="generate (default), models:write, admin.")] = None,
    config: _Config = None,
    data: _Data = None,
) -> None:
    """Make a key and print it: the only time it can be read."""
    from server.keys import Scope

    try:
        scopes = [Scope(text) for text in scope or ["generate"]]
    except ValueError:
        _exit(f"unknown scope; there are: {', '.join(Scope)}")

    async def add(store: KeyStore) -> str:
        return await store.add(name, scopes)

    typer.echo(_with_keys(_load(config, data=data), add))


@keys.command("list")
def list_keys(config: _Config = None, data: _Data = None) -> None:
    """Show all keys, without the keys themselves."""
    from rich.console import Console
    from rich.table import Table

    async def find(store: KeyStore) -> list[ApiKey]:
        return await store.list()

    table = Table("id", "name", "key", "scopes", "revoked")
    for key in _with_keys(_load(config, data=data), find):
        scopes = ", ".join(sorted(key.scopes))
        table.add_row(key.id, key.name, f"{key.prefix}…", scopes, "" if key.revoked_at is None else "yes")
    Console().print(table)


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="As in the list: key_…")], config: _Config = None, data: _Data = None
) -> None:
    """Refuse a key from now on."""

    async def revoke(store: KeyStore) -> bool:
        return await store.revoke(key_id)

    if not _with_keys(_load(config, data=data), revoke):
        _exit(f"no key {key_id} in use", code=1)
    typer.echo(f"{key_id} revoked")


def _serve(settings: Settings, listener: socket.socket) -> None:
    import uvicorn

    from server.api.connections import Connection
    from server.app import build_app
    from server.config import ConfigError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    started: list[Parts] = []

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Who waits for pictures is answered "processing" now, not when uvicorn's patience ends.
            for parts in started:
                parts.service.drain()
            await super().shutdown(sockets)

    def on_start(parts: Parts) -> None:
        started.append(parts)
        typer.echo(_welcome(parts, listener))

    try:
        app = build_app(settings, on_start=on_start)
    except ConfigError as error:
        _exit(str(error))
    config = uvicorn.Config(
        app,
        # Query strings hold keys.
        access_log=False,
        log_config=None,
        server_header=False,
        ws="none",
        http=Connection,
        h11_max_incomplete_event_size=_LONGEST_HEAD,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises the signal again once it has shut down; the default would make a clean end look like a crash.
        signal.signal(number, lambda *_: None)
    Server(config).run(sockets=[listener])


def _welcome(parts: Parts, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    address = parts.settings.public_url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    lines = [f"latentd is listening on {address}"]
    models = parts.catalog.models()
    demos = [model.id for model in models if model.demo is not None]
    if demos:
        lines.append(f"Demo models stand in for real weights: {', '.join(demos)}.")
        lines.append("./latentd pull <model> gets real weights.")
    if not models:
        lines.append("There are no models.")
    key = parts.keys.generated
    if key is not None:
        lines.append(f"API key: {key}")
    elif parts.keys.used_file is not None:
        lines.append(f"API key: in {parts.keys.used_file}")
    model = parts.catalog.example()
    body = {"key": key or "YOUR_KEY", "prompt": "a red bridge"} | ({} if model is None else {"model_id": model.id})
    lines.append(
        f"Try: curl -s {address}/api/v6/images/text2img -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )
    return "\n".join(lines)


def _load(config: Path | None, **arguments: object) -> Settings:
    from server.config import ConfigError, Settings

    try:
        return Settings.load(config, **arguments)
    except ConfigError as error:
        _exit(str(error))


def _load_catalog(settings: Settings) -> Catalog:
    """The models without a server: no default is needed, and a wrong one is no hindrance."""
    from pipelines.registry import FAMILIES
    from server.catalog import Catalog
    from server.config import ROOT, ConfigError

    try:
        return Catalog.load(configs=ROOT / "configs", data=settings.data, families=FAMILIES)
    except ConfigError as error:
        _exit(str(error))


def _load_auxiliary_files() -> Mapping[str, AuxiliaryFile]:
    from server.catalog.auxiliary_files import read_auxiliary_files
    from server.config import ROOT, ConfigError

    try:
        return read_auxiliary_files(ROOT / "configs")
    except ConfigError as error:
        _exit(str(error))


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        # create_server's own text repeats the address.
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) and (error.errno or 0) > 0 else error
        _exit(f"cannot listen on {host}:{port}: {reason}", code=1)


def _with_keys(settings: Settings, use: Callable[[KeyStore], Awaitable[T]]) -> T:
    from server.app import open_database
    from server.errors import Unavailable
    from server.keys import KeyStore

    async def run() -> T:
        # Without a key file: listing keys makes none.
        store = KeyStore(open_database(settings))
        await store.start()
        try:
            return await use(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except Unavailable as error:
        _exit(str(error), code=1)


def _exit(message: str, *, code: int = 2) -> NoReturn:
    typer.echo(f"latentd: {message}", err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    app(prog_name="latentd")
