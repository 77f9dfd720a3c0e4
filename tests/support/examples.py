"""A message for each RPC that the server can serve, to start random ones from."""

from collections.abc import Mapping

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from taskmix.v1 import admin_pb2, bank_pb2, common_pb2, experiments_pb2, inference_pb2
from taskmix_server.rpc.server import HEALTH, SERVICES, methods

_MIX = common_pb2.Mix(expression="a:0.5+b:0.5")
_TERMS = common_pb2.MixTerms(
    terms=[common_pb2.Term(task="a", coefficient=0.5), common_pb2.Term(task="c", coefficient=1.0)]
)
_SAMPLING = inference_pb2.Sampling(max_tokens=2, temperature=0.0)
_GENERATE = inference_pb2.GenerateRequest(prompt="x", mix=_MIX, sampling=_SAMPLING)
_ARMS = (
    experiments_pb2.Arm(name="control", mix=common_pb2.Mix(terms=_TERMS), share=0.5),
    experiments_pb2.Arm(name="b", mix=_MIX, share=0.5),
)
_DESIGN = experiments_pb2.ExperimentDesign(name="fuzz-1", salt="s", arms=_ARMS)
_OUTCOME = experiments_pb2.Outcome(key="k", metric="score", value=1.0, subject="s")
_TENANT = admin_pb2.Tenant(name="fuzz-1", role=admin_pb2.ROLE_USER, tasks=["a"])

EXAMPLES: Mapping[str, Message] = {
    "Generate": _GENERATE,
    "StreamGenerate": inference_pb2.StreamGenerateRequest(request=_GENERATE),
    "LoadTask": bank_pb2.LoadTaskRequest(name="a"),
    "UnloadTask": bank_pb2.UnloadTaskRequest(name="b"),
    "RegisterMix": bank_pb2.RegisterMixRequest(name="fuzz-1", mix=_MIX),
    "DeleteMix": bank_pb2.DeleteMixRequest(name="fuzz-1"),
    "CreateExperiment": experiments_pb2.CreateExperimentRequest(
        design=_DESIGN, is_new_version=True
    ),
    "GetExperiment": experiments_pb2.GetExperimentRequest(name="fuzz-1"),
    "StartExperiment": experiments_pb2.StartExperimentRequest(name="fuzz-1"),
    "RampExperiment": experiments_pb2.RampExperimentRequest(name="fuzz-1", percent=50.0),
    "StopExperiment": experiments_pb2.StopExperimentRequest(name="fuzz-1"),
    "PromoteExperiment": experiments_pb2.PromoteExperimentRequest(
        name="fuzz-1", arm="b", mix_name="fuzz-2"
    ),
    "RollbackExperiment": experiments_pb2.RollbackExperimentRequest(name="fuzz-1"),
    "RecordOutcomes": experiments_pb2.RecordOutcomesRequest(
        experiment="fuzz-1", outcomes=[_OUTCOME]
    ),
    "GetResults": experiments_pb2.GetResultsRequest(name="fuzz-1"),
    "CreateTenant": admin_pb2.CreateTenantRequest(tenant=_TENANT),
    "UpdateTenant": admin_pb2.UpdateTenantRequest(tenant=_TENANT),
    "DeleteTenant": admin_pb2.DeleteTenantRequest(name="fuzz-1"),
    "CreateKey": admin_pb2.CreateKeyRequest(tenant="fuzz-1"),
}
"""By the RPC's name; one that is not here starts from an empty message."""

REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
# One never ends by itself; the other is declared, and not in the library.
LEFT_OUT = (f"/{HEALTH}/Watch", f"/{HEALTH}/List")
RPCS = tuple(sorted({*methods((*SERVICES, HEALTH, REFLECTION))}.difference(LEFT_OUT)))
"""Paths of the RPCs to try."""


def example(path: str) -> Message:
    """A message that the RPC takes."""
    service, _, name = path[1:].partition("/")
    if name in EXAMPLES:
        return EXAMPLES[name]
    pool = descriptor_pool.Default()
    method = pool.FindServiceByName(service).methods_by_name[name]
    return message_factory.GetMessageClass(method.input_type)()
