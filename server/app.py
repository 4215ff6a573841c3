"""The composition root: the one place that reads settings, builds every part and hands it what it needs."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from fastapi import FastAPI

from pipelines.auxiliary import FindAuxiliary
from pipelines.draft import SafetyRules
from pipelines.inputs import ReadInput
from pipelines.registry import FAMILIES
from server.api.dialect import Context, Dialect, load_dialects
from server.api.errors import Owners, install
from server.api.files import Files
from server.api.health import Health
from server.catalog import Catalog, Source
from server.catalog.auxiliaries import Auxiliaries
from server.catalog.auxiliary_files import AuxiliaryFile
from server.config import ROOT, Settings
from server.database.connect import Database
from server.engine.executors.base import Executor
from server.errors import Unavailable
from server.gallery import Gallery
from server.inputs import Inputs
from server.janitor import Janitor
from server.jobs.base import JobStore
from server.jobs.sql import SqlJobStore
from server.keys import KeyStore
from server.metrics import Metrics
from server.net import Guard
from server.preloads import Preloads
from server.service import Service
from server.shelf import Shelf
from server.storage.base import ImageStore
from server.storage.local import LocalImageStore
from server.styles import StyleFiles
from server.webhooks import Webhooks


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that is built once; what has a life of its own is started and closed by ``running``."""

    settings: Settings
    catalog: Catalog
    auxiliaries: Auxiliaries
    keys: KeyStore
    jobs: JobStore
    images: ImageStore
    inputs: Inputs
    executor: Executor
    guard: Guard
    service: Service
    preloads: Preloads
    shelf: Shelf
    janitor: Janitor
    dialects: Mapping[str, Dialect]
    styles: StyleFiles


def build_parts(
    settings: Settings,
    *,
    executor: Executor | None = None,
    catalog: Catalog | None = None,
    jobs: JobStore | None = None,
    images: ImageStore | None = None,
) -> Parts:
    """Makes the parts from the settings, except those given; opens and starts nothing. Raises ``ConfigError``."""
    catalog = catalog or load_catalog(settings)
    database = open_database(settings)
    jobs = jobs or SqlJobStore(database)
    images = images or LocalImageStore(settings.data / "images")
    guard = Guard(settings.allow_private_hosts)
    inputs = Inputs(guard, settings.data / "inputs")
    auxiliaries = Auxiliaries(settings.data)
    executor = executor or _local_executor(settings, catalog, inputs.read, auxiliaries.find)
    dialects = load_dialects({"modelslab": settings.modelslab.model_dump()})
    webhooks = Webhooks(guard, timeout_s=settings.webhook_timeout_s, delays_s=settings.webhook_delays_s)
    gallery = Gallery(images, quality=settings.picture_quality, parameters=settings.picture_parameters)
    service = Service(
        executor,
        jobs,
        gallery,
        webhooks,
        catalog,
        {name: dialect.webhook_body for name, dialect in dialects.items()},
        max_queued_jobs=settings.max_queued_jobs,
        max_queued_jobs_per_key=settings.max_queued_jobs_per_key,
        deadline_s=settings.job_deadline_s,
        max_attempts=settings.max_attempts,
        forced_safety=settings.safety.type if settings.safety.force else None,
    )
    return Parts(
        settings=settings,
        catalog=catalog,
        auxiliaries=auxiliaries,
        keys=build_keys(settings, database),
        jobs=jobs,
        images=images,
        inputs=inputs,
        executor=executor,
        guard=guard,
        service=service,
        preloads=Preloads(executor),
        shelf=Shelf(
            settings.data,
            guard,
            catalog,
            webhooks,
            partial(_pull, catalog, settings.data),
            partial(_pull_vae, settings.data),
        ),
        janitor=Janitor(
            jobs,
            images,
            gallery,
            inputs,
            retention_days=settings.retention_days,
            max_storage_gb=settings.max_storage_gb or 0.0,
            input_retention_days=settings.input_retention_days,
        ),
        dialects=dialects,
        styles=StyleFiles.load(ROOT / "configs" / "styles.toml", settings.data / "styles.toml"),
    )


def load_catalog(settings: Settings) -> Catalog:
    """The models of the checkout and of the data folder. Raises ``ConfigError``."""
    return Catalog.load(
        configs=ROOT / "configs",
        data=settings.data,
        families=FAMILIES,
        default_model=settings.default_model,
        realtime_model=settings.realtime_model,
        edit_model=settings.edit_model,
        caption_model=settings.caption_model,
    )


def open_database(settings: Settings) -> Database:
    """Jobs and keys share one file; its folder is made here, for SQLite does not."""
    settings.data.mkdir(parents=True, exist_ok=True)
    return Database(settings.data / "latentd.db")


def build_keys(settings: Settings, database: Database) -> KeyStore:
    """The keys of this data folder."""
    bootstrap = None if settings.api_key is None else settings.api_key.get_secret_value()
    return KeyStore(database, bootstrap=bootstrap, key_file=settings.data / "api_key")


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[None]:
    """Starts the parts, each after those it uses, and closes them in the opposite order.

    Stores first, so that the service finds its jobs; the executor before the service, which hands it requests at
    once. At the end the service interrupts what is drawn while executor and stores still answer.
    """
    async with AsyncExitStack() as stack:
        for part in (parts.keys, parts.jobs):
            await part.start()
            stack.push_async_callback(part.close)
        await parts.images.start()
        await parts.inputs.start()
        for later in (parts.executor, parts.service, parts.janitor, parts.shelf):
            await later.start()
            stack.push_async_callback(later.close)
        stack.push_async_callback(parts.preloads.close)
        yield


def build_app(
    settings: Settings,
    *,
    executor: Executor | None = None,
    catalog: Catalog | None = None,
    jobs: JobStore | None = None,
    images: ImageStore | None = None,
    on_start: Callable[[Parts], None] | None = None,
) -> FastAPI:
    """The whole server as an ASGI app; its lifespan runs the parts. ``on_start`` is called when they run.

    Raises ``ConfigError``. Parts that are given replace those that the settings describe.
    """
    parts = build_parts(settings, executor=executor, catalog=catalog, jobs=jobs, images=images)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running(parts):
            if on_start is not None:
                on_start(parts)
            yield

    app = FastAPI(
        title="latentd",
        version=version(),
        lifespan=lifespan,
        # Ours ask for a key, and a redirect would lose the body of a POST.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    _add_routes(app, parts)
    return app


def _add_routes(app: FastAPI, parts: Parts) -> None:
    settings = parts.settings
    context = Context(
        service=parts.service,
        jobs=parts.jobs,
        catalog=parts.catalog,
        auxiliaries=parts.auxiliaries,
        keys=parts.keys,
        preloads=parts.preloads,
        inspect=parts.executor.inspect,
        shelf=parts.shelf,
        guard=parts.guard,
        inputs=parts.inputs,
        images=parts.images,
        public_url=settings.public_url,
        sync_wait_s=settings.sync_wait_s,
        reproducible=settings.reproducible,
        safety=SafetyRules(
            default=settings.safety.default == "yes", force=settings.safety.force, type=settings.safety.type
        ),
        styles=parts.styles.current,
    )
    metrics = Metrics(parts.service.engine_stats)
    health = Health(
        context,
        metrics,
        version=version(),
        public_docs=settings.public_docs,
        public_metrics=settings.public_metrics,
    )
    dialects = list(parts.dialects.values())
    for router in (health.router(), Files(parts.images).router(), *(one.router(context) for one in dialects)):
        app.include_router(router)
    install(app, Owners(dialects), metrics, max_body_bytes=settings.max_body_bytes)


def version() -> str:
    """What pyproject.toml says; the project runs in place, so no installed metadata does."""
    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "unknown"
    return cast(str, project["project"]["version"])


def _pull(catalog: Catalog, data: Path, model: str) -> None:
    """Fetches a model from the hub, as ``./latentd pull`` does, without its bars. Raises ``Unavailable``."""
    from server.pull import PullError, pull
    from server.pull.silence import Silence

    try:
        pull(model, catalog, {}, data, Silence(), checker=False)
    except PullError as error:
        raise Unavailable(str(error)) from error


def _pull_vae(data: Path, name: str, hub: str) -> None:
    """Fetches a repository that is a VAE in diffusers' layout into ``data``. Raises ``Unavailable``."""
    from server.pull import PullError
    from server.pull.auxiliary import pull_auxiliary
    from server.pull.silence import Silence

    source = Source(hub=hub, files=["config.json", "diffusion_pytorch_model*.safetensors"])
    try:
        pull_auxiliary(AuxiliaryFile(id=name, kind="vae", source=source), {}, data, Silence())
    except PullError as error:
        raise Unavailable(str(error)) from error


def _local_executor(
    settings: Settings, catalog: Catalog, read_input: ReadInput, find_auxiliary: FindAuxiliary
) -> Executor:
    # Brings torch in, which nothing but a real server needs.
    from server.engine.executors.local import LocalExecutor

    return LocalExecutor(
        catalog.get,
        device=settings.device,
        threads=settings.threads or 0,
        max_rows=settings.max_rows,
        max_resident=settings.max_resident_models,
        budget_gb=settings.vram_budget_gb,
        offload=settings.offload,
        read_input=read_input,
        find_auxiliary=find_auxiliary,
        checker_files=catalog.checker,
    )
