"""Another tenant's tasks, mixes and experiments, in every field of every RPC that can name one.

The fields are found from the descriptors: one that is new must be said to name something, and is
tried then, or to name nothing that is anybody's.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc import StatusCode

from taskmix.v1 import common_pb2
from taskmix_client import Arm, ExperimentDesign
from taskmix_server.rpc.server import SERVICES, methods
from taskmix_server.tenancy.rules import RULES, Access
from taskmix_server.tenancy.tenant import Tenant, Verb
from tests.unit.server.conftest import Parts
from tests.unit.server.secured import AUTHOR, Secured, secured

UNKNOWN = "nosuch"
OWNED: Mapping[str, Mapping[str, str]] = {
    "full": {"task": "head", "mix": "full-good", "experiment": "full-tone"},
    "other": {"task": "body", "mix": "other-good", "experiment": "other-tone"},
}
OTHERS = {"full": "other", "other": "full"}

NAMES = {
    "Mix.expression": "task",
    "Term.task": "task",
    "LoadTaskRequest.name": "task",
    "UnloadTaskRequest.name": "task",
    "GenerateRequest.mix_name": "mix",
    "DeleteMixRequest.name": "mix",
    "Arm.mix_name": "mix",
    "ShadowArm.mix_name": "mix",
    "PromoteExperimentRequest.mix_name": "mix",
    "ExperimentRef.name": "experiment",
    "GetExperimentRequest.name": "experiment",
    "StartExperimentRequest.name": "experiment",
    "RampExperimentRequest.name": "experiment",
    "StopExperimentRequest.name": "experiment",
    "PromoteExperimentRequest.name": "experiment",
    "RollbackExperimentRequest.name": "experiment",
    "RecordOutcomesRequest.experiment": "experiment",
    "GetResultsRequest.name": "experiment",
}
NAMES_NOTHING = {
    *("GenerateRequest.prompt", "ChatMessage.role", "ChatMessage.content", "Sampling.stop"),
    *("ByTensorEntry.key", "Term.masks"),  # of the base, and of the bank; see test_isolation.py
    *("RegisterMixRequest.name", "ExperimentDesign.name"),  # names that are given, not asked for
    *("ExperimentDesign.salt", "ExperimentDesign.tenants", "ExperimentRef.subject"),
    *("OverridesEntry.key", "OverridesEntry.value", "Guardrail.metric"),
    *(f"{arm}.{field}" for arm in ("Arm", "ShadowArm") for field in ("name", "mix_digest")),
    *("StopExperimentRequest.arm", "StopExperimentRequest.why", "PromoteExperimentRequest.arm"),
    *(f"Outcome.{field}" for field in ("key", "metric", "subject", "request_id")),
    "GetResultsRequest.ratios",
}
REFUSED = {StatusCode.NOT_FOUND, StatusCode.PERMISSION_DENIED}
NOT_UNDERSTOOD = {StatusCode.INVALID_ARGUMENT, StatusCode.UNIMPLEMENTED, StatusCode.INTERNAL}

Path = tuple[str, ...]
Field = tuple[str, Path, FieldDescriptor]


def input_type(method: str) -> Descriptor:
    service, _, name = method[1:].partition("/")
    described = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
    return described.input_type


def texts(message: Descriptor, path: Path = (), seen: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every field of a message that holds text, at any depth."""
    for field in message.fields:
        inner = field.message_type
        if inner is None and field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            yield (*path, field.name), field
        elif inner is not None and inner.full_name not in seen:
            yield from texts(inner, (*path, field.name), (*seen, inner.full_name))


def name_of(field: FieldDescriptor) -> str:
    return f"{field.containing_type.name}.{field.name}"


FIELDS: tuple[Field, ...] = tuple(
    (method, path, field)
    for method in methods(SERVICES)
    if RULES[method] is not Access.ADMIN
    for path, field in texts(input_type(method))
)
NAMING = tuple(field for field in FIELDS if name_of(field[2]) in NAMES)


def template(method: str, tenant: str) -> Any:
    """A request that lacks nothing, but for what a field of it is to name."""
    task = OWNED[tenant]["task"]
    arms = [
        {"name": "control", "mix": {"expression": task}, "share": 0.5},
        {"name": "half", "mix": {"expression": f"{task}:0.5"}, "share": 0.5},
    ]
    shadow = {"name": "shade", "mix": {"expression": f"{task}:0.25"}, "rate": 0.1}
    design = {"name": f"{tenant}-new", "arms": arms, "shadows": [shadow], "tenants": [tenant]}
    given: Mapping[str, Any] = {
        "Generate": {"prompt": "x"},
        "StreamGenerate": {"request": {"prompt": "x"}},
        "RegisterMix": {"name": f"{tenant}-new"},
        "CreateExperiment": {"design": design},
        "RampExperiment": {"percent": 50.0},
        "PromoteExperiment": {
            "name": OWNED[tenant]["experiment"],
            "arm": "control",
            "mix_name": f"{tenant}-new",
        },
    }
    name = method.rpartition("/")[2]
    return message_factory.GetMessageClass(input_type(method))(**given.get(name, {}))


def filled(message: Any, path: Path, name: str) -> Any:
    """The message with a name in one of its fields, in the first of what is repeated."""
    *outer, last = path
    inner = message
    for field in outer:
        inner = getattr(inner, field)
        if hasattr(inner, "add"):
            inner = inner[0] if inner else inner.add()
    if isinstance(inner, common_pb2.Term):
        inner.coefficient = 1.0
    setattr(inner, last, name)
    return message


async def asked(served: Secured, tenant: str, field: Field, name: str) -> tuple[StatusCode, str]:
    """What a tenant learns that writes a name into a field, with the name taken out."""
    method, path, _ = field
    request = filled(template(method, tenant), path, name)
    rpc: Any = served.channel.unary_stream(
        method, request_serializer=lambda message: message.SerializeToString()
    )
    metadata = (("authorization", f"Bearer {served.keys[tenant]}"),)
    try:
        async for _ in rpc(request, metadata=metadata, timeout=20):
            pass
    except grpc.aio.AioRpcError as error:
        return error.code(), (error.details() or "").replace(f"'{name}'", "NAME")
    return StatusCode.OK, ""


@pytest.fixture
async def served(parts: Parts) -> AsyncIterator[Secured]:
    """Two tenants with all rights, each over a task, a mix and an experiment of its own."""
    other = Tenant("other", tasks=("body",), mixes=("other-*",), verbs=tuple(Verb), may_inline=True)
    async with secured(parts) as opened:
        parts.store.create(other, AUTHOR)
        opened.keys["other"] = parts.store.create_key("other", None, AUTHOR)[1].text
        for tenant, owned in OWNED.items():
            task = owned["task"]
            arms = Arm("control", task, 0.5), Arm("half", f"{task}:0.5", 0.5)
            design = ExperimentDesign(owned["experiment"], arms, tenants=(tenant,))
            async with opened.client(tenant) as client:
                await client.register_mix(owned["mix"], task)
                await client.create_experiment(design)
        yield opened


def test_every_field_that_holds_text_is_known() -> None:
    assert {name_of(field) for _, _, field in FIELDS} == {*NAMES, *NAMES_NOTHING}


@pytest.mark.parametrize("tenant", OWNED)
async def test_what_is_another_s_is_like_what_is_not_there(served: Secured, tenant: str) -> None:
    for field in NAMING:
        theirs = OWNED[OTHERS[tenant]][NAMES[name_of(field[2])]]
        expected = await asked(served, tenant, field, UNKNOWN)
        assert expected[0] in REFUSED, (field[:2], expected)
        assert await asked(served, tenant, field, theirs) == expected, field[:2]


async def test_what_is_one_s_own_is_there(served: Secured) -> None:
    """The same requests are understood, and do what they say."""
    last = ("/taskmix.v1.BankService/UnloadTask", "/taskmix.v1.BankService/DeleteMix")
    for field in sorted(NAMING, key=lambda field: field[0] in last):
        own = OWNED["full"][NAMES[name_of(field[2])]]
        status, message = await asked(served, "full", field, own)
        assert status not in REFUSED | NOT_UNDERSTOOD, (field[:2], message)
