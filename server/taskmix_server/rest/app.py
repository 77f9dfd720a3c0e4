"""The HTTP app: an allow-list of routes, everything else is 404."""

import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.rest.access import AccessMiddleware, call_name, caller
from taskmix_server.rest.generation import GenerationRoute
from taskmix_server.rest.openai_app import frozen_heap
from taskmix_server.rest.status import json_error
from taskmix_server.services.services import Services
from taskmix_server.tenancy.rules import check_covered

GENERATION_PATHS = ("/v1/completions", "/v1/chat/completions")


def build_app(
    openai_app: ASGIApp,
    services: Services,
    engine: VllmEngine,
    base_name: str,
) -> Starlette:
    """Our routes, with vLLM's app `openai_app` behind the generation routes only."""
    inference, bank = services.inference, services.bank
    generation = GenerationRoute(openai_app, inference, engine, base_name)
    started_s = int(time.time())

    async def list_models(request: Request) -> Response:
        principal = caller(request.scope)
        listed = bank.list_tasks(principal)
        mixes = [described.record.name for described in await bank.list_mixes(principal)]
        tasks = [status.name for status in listed if status.is_served]
        names = dict.fromkeys([base_name, *mixes, *tasks])
        return JSONResponse(
            {"object": "list", "data": [_model_card(name, base_name, started_s) for name in names]}
        )

    async def is_ready(request: Request) -> Response:
        if not inference.is_ready:
            return PlainTextResponse("not ready\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return PlainTextResponse("ready\n")

    async def metrics(request: Request) -> Response:
        """Prometheus text: ours and vLLM's."""
        await bank.tasks.memory.refresh()
        body = prometheus_client.generate_latest()
        return Response(body, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    routes = [
        *(Route(path, generation, methods=["POST"]) for path in GENERATION_PATHS),
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/healthz", is_alive, methods=["GET"]),
        Route("/readyz", is_ready, methods=["GET"]),
    ]
    check_covered(calls(routes))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(AccessMiddleware, services.access)],
        exception_handlers={HTTPException: refuse_route},
        lifespan=frozen_heap,
    )
    app.router.redirect_slashes = False
    return app


def calls(routes: Iterable[Route]) -> list[str]:
    """Every method of every route, as the rules name them."""
    return [call_name(method, route.path) for route in routes for method in route.methods or ()]


async def is_alive(request: Request) -> Response:
    """The process answers; `/readyz` says whether it takes work."""
    return PlainTextResponse("ok\n")


async def refuse_route(request: Request, error: Exception) -> Response:
    """404 and 405 in the shape that OpenAI's clients read."""
    assert isinstance(error, HTTPException), "registered for HTTPException only"
    message = f"{request.method} {request.url.path} is not served here"
    return json_error(HTTPStatus(error.status_code), "NotFoundError", message)


def _model_card(name: str, base_name: str, created_s: int) -> dict[str, Any]:
    parent = None if name == base_name else base_name
    return {
        "id": name,
        "object": "model",
        "created": created_s,
        "owned_by": "taskmix",
        "parent": parent,
    }
