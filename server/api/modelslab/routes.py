"""The route table as a router; bodies are read by ``read_fields``, so FastAPI validates nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipelines.errors import Error
from server.api.deps import authenticate, base_url, offered_key
from server.api.dialect import Context, JSONBytes, status_of
from server.api.modelslab.answers import refused
from server.api.modelslab.body import read_fields
from server.api.modelslab.documentation import describe
from server.api.modelslab.endpoints import ENDPOINTS, Endpoint
from server.api.modelslab.schemas import Options
from server.api.modelslab.segments import SEGMENTS
from server.api.modelslab.throttle import Throttle
from server.api.modelslab.visit import Visit
from server.errors import NotFound

_ROOT = "/api"


def make_router(context: Context, options: Options) -> APIRouter:
    """Every documented path with its documentation, and every alias without."""
    router = APIRouter(tags=["ModelsLab"])
    for endpoint in ENDPOINTS:
        serve = _serving(endpoint, context, options)
        documented, *aliases = endpoint.paths
        for method in endpoint.methods:
            router.add_api_route(
                _ROOT + documented,
                serve,
                methods=[method],
                response_model=None,
                summary=endpoint.name,
                description=endpoint.summary,
                openapi_extra=describe(documented, endpoint.schema, endpoint.answer, endpoint.example),
            )
        for alias in aliases:
            router.add_route(_ROOT + alias, serve, methods=list(endpoint.methods), include_in_schema=False)
    return router


def _serving(endpoint: Endpoint, context: Context, options: Options) -> Callable[[Request], Awaitable[Response]]:
    throttle = None if endpoint.per_minute is None else Throttle(per_minute=endpoint.per_minute)

    async def visited(request: Request) -> Response:
        fields = await read_fields(request)
        visit = Visit(
            context=context,
            options=options,
            fields=fields,
            caller=await authenticate(context.keys, offered_key(request, fields.raw("key")), scope=endpoint.scope),
            base_url=base_url(request, context.public_url),
            path=request.path_params,
        )
        if visit.path.get("segment", "images") not in SEGMENTS:
            raise NotFound("Not found")
        if throttle is not None:
            throttle.admit(visit.caller.id)
        answer = await endpoint.handle(visit)
        return answer if isinstance(answer, Response) else JSONBytes(answer)

    async def coded(request: Request) -> Response:
        try:
            return await visited(request)
        except Error as error:
            return refused(error, options, code=status_of(error))

    return coded if endpoint.coded else visited
