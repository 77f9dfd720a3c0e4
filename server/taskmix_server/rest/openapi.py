"""The HTTP edge as an OpenAPI document: `make openapi` writes docs/openapi.json.

Bodies of the generation routes are vLLM's own models, with what this edge adds to them, holds
tighter, or takes out.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from taskmix_server.domain.limits import MAX_COMPLETIONS, MAX_MESSAGES
from taskmix_server.tenancy.rules import RULES, Access

Json = dict[str, Any]

BODIES: Mapping[str, Any] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatCompletionRequest,
}
ANSWERS: Mapping[str, tuple[str, str]] = {
    "GET /v1/models": ("The base, and the named mixes and loaded tasks of the caller.", "json"),
    "GET /metrics": ("Prometheus text.", "text"),
    "GET /healthz": ("The process answers.", "text"),
    "GET /readyz": ("The server takes requests.", "text"),
    "POST /v1/completions": ("An answer, or its events as they come.", "stream"),
    "POST /v1/chat/completions": ("An answer, or its events as they come.", "stream"),
}
READINESS = "GET /readyz"
MEDIA: Mapping[str, tuple[str, ...]] = {
    "json": ("application/json",),
    "text": ("text/plain",),
    "stream": ("application/json", "text/event-stream"),
}
REFUSALS: Mapping[str, str] = {
    "400": "Malformed, or over a limit of the server.",
    "401": "No key, or none that is valid.",
    "403": "Not permitted to this tenant.",
    "404": "A task, mix or experiment that is unknown to this tenant.",
    "409": "What is asked for does not fit what is there.",
    "429": "A limit of the tenant's, or too many wait; `retry-after` says when to come back.",
    "503": "Starting, draining, or the engine is down.",
    "504": "The body did not arrive in time.",
}
SERVERS_OWN = ("cache_salt", "request_id")
"""Fields of vLLM's that a body may have, and that the server replaces."""

MODEL: Json = {
    "anyOf": [{"type": "string"}, {"type": "null"}],
    "description": "The base's name, a named mix, `experiment:NAME`, or a mix: "
    "`math:0.6+code:0.4`. The base if absent.",
}
TASK_MIX: Json = {
    "anyOf": [{"$ref": "#/components/schemas/Mix"}, {"type": "null"}],
    "description": "A mix in its JSON form, instead of `model`.",
}
MIX: Json = {
    "type": "object",
    "properties": {
        "terms": {"type": "array", "items": {"$ref": "#/components/schemas/Term"}},
        "method": {"type": "string"},
        "tasks": {"type": "array", "items": {"type": "string"}},
        "params": {"type": "object"},
    },
    "oneOf": [{"required": ["terms"]}, {"required": ["method", "tasks"]}],
    "additionalProperties": False,
}
SCALES: Json = {"type": "object", "additionalProperties": {"type": "number"}}
TERM: Json = {
    "type": "object",
    "required": ["task"],
    "properties": {
        "task": {"type": "string"},
        "coefficient": {"type": "number", "default": 1.0},
        "layers": {
            "type": "object",
            "properties": {
                "default": {"type": "number"},
                "by_layer": SCALES,
                "by_tensor": SCALES,
            },
            "additionalProperties": False,
        },
        "masks": {"type": "array", "items": {"type": "string"}},
    },
    "additionalProperties": False,
}
ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
            },
        }
    },
}


def document() -> Json:
    """The routes that the rules name, with the bodies and answers of each."""
    schemas: Json = {"Error": ERROR, "Mix": MIX, "Term": TERM}
    paths: dict[str, Json] = {}
    for call in ANSWERS:
        method, path = call.split()
        paths[path] = {method.lower(): _operation(call, schemas)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "taskmix", "version": version("taskmix")},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(call: str, schemas: Json) -> Json:
    meaning, kind = ANSWERS[call]
    path = call.split()[1]
    refused = {status: _refused(path, status) for status in _refusals(call)}
    operation: Json = {"responses": {"200": _answer(meaning, *MEDIA[kind]), **refused}}
    if RULES[call] is not Access.OPEN:
        operation["security"] = [{"key": []}]
    if path in BODIES:
        operation["requestBody"] = _body(path, schemas)
    return operation


def _refusals(call: str) -> Iterable[str]:
    """Statuses other than 200 with which a call may end."""
    if call.split()[1] in BODIES:
        return REFUSALS
    if call == READINESS:
        return ("503",)
    closed = {Access.OPEN: (), Access.KEY: ("401",), Access.ADMIN: ("401", "403")}
    return closed[Access(RULES[call])]


def _refused(path: str, status: str) -> Json:
    if path == READINESS.split()[1]:
        return _answer(REFUSALS[status], *MEDIA["text"])
    schema = {"$ref": "#/components/schemas/Error"}
    content = {"application/json": {"schema": schema}}
    return {"description": REFUSALS[status], "content": content}


def _answer(meaning: str, *media: str) -> Json:
    return {"description": meaning, "content": {name: {} for name in media}}


def _body(path: str, schemas: Json) -> Json:
    """What a route takes; the models that it is made of go to `schemas`."""
    model = BODIES[path]
    schema: Json = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs"))
    fields = {name: kind for name, kind in schema["properties"].items() if name not in SERVERS_OWN}
    fields |= {"model": MODEL, "task_mix": TASK_MIX}
    fields["n"] = {**fields["n"], "minimum": 1, "maximum": MAX_COMPLETIONS}
    if "messages" in fields:
        fields["messages"] = {**fields["messages"], "maxItems": MAX_MESSAGES}
    schemas[model.__name__] = {**schema, "properties": fields}
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"required": True, "content": {"application/json": {"schema": reference}}}


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
