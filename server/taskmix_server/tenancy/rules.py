"""Who may make which call: one row for each RPC and HTTP route."""

from collections.abc import Mapping
from enum import Enum

from taskmix_server.tenancy.tenant import Verb


class Access(Enum):
    """Anybody; who has a key; admins alone."""

    OPEN = "open"
    KEY = "key"
    ADMIN = "admin"


Rule = Access | Verb
"""A verb is for admins, and for tenants that were given it."""

_INFERENCE = "/taskmix.v1.InferenceService"
_BANK = "/taskmix.v1.BankService"
_EXPERIMENTS = "/taskmix.v1.ExperimentService"
_ADMIN = "/taskmix.v1.AdminService"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection"

METRICS = "GET /metrics"

RULES: Mapping[str, Rule] = {
    f"{_INFERENCE}/Generate": Access.KEY,
    f"{_INFERENCE}/StreamGenerate": Access.KEY,
    f"{_BANK}/ListTasks": Access.KEY,
    f"{_BANK}/LoadTask": Verb.LOAD_TASK,
    f"{_BANK}/UnloadTask": Verb.UNLOAD_TASK,
    f"{_BANK}/RegisterMix": Verb.REGISTER_MIX,
    f"{_BANK}/ListMixes": Access.KEY,
    f"{_BANK}/DeleteMix": Verb.DELETE_MIX,
    f"{_EXPERIMENTS}/CreateExperiment": Verb.CREATE_EXPERIMENT,
    f"{_EXPERIMENTS}/GetExperiment": Access.KEY,
    f"{_EXPERIMENTS}/ListExperiments": Access.KEY,
    f"{_EXPERIMENTS}/StartExperiment": Verb.START_EXPERIMENT,
    f"{_EXPERIMENTS}/RampExperiment": Verb.RAMP_EXPERIMENT,
    f"{_EXPERIMENTS}/StopExperiment": Verb.STOP_EXPERIMENT,
    f"{_EXPERIMENTS}/PromoteExperiment": Verb.PROMOTE_EXPERIMENT,
    f"{_EXPERIMENTS}/RollbackExperiment": Verb.ROLL_BACK_EXPERIMENT,
    f"{_EXPERIMENTS}/RecordOutcomes": Verb.RECORD_OUTCOMES,
    f"{_EXPERIMENTS}/GetResults": Verb.READ_RESULTS,
    f"{_ADMIN}/ListTenants": Access.ADMIN,
    f"{_ADMIN}/CreateTenant": Access.ADMIN,
    f"{_ADMIN}/UpdateTenant": Access.ADMIN,
    f"{_ADMIN}/DeleteTenant": Access.ADMIN,
    f"{_ADMIN}/ListKeys": Access.ADMIN,
    f"{_ADMIN}/CreateKey": Access.ADMIN,
    f"{_ADMIN}/RevokeKey": Access.ADMIN,
    f"{_ADMIN}/ListAudit": Access.ADMIN,
    "/grpc.health.v1.Health/Check": Access.OPEN,
    "/grpc.health.v1.Health/List": Access.OPEN,
    "/grpc.health.v1.Health/Watch": Access.OPEN,
    f"{_REFLECTION}/ServerReflectionInfo": Access.OPEN,
    "POST /v1/completions": Access.KEY,
    "POST /v1/chat/completions": Access.KEY,
    "GET /v1/models": Access.KEY,
    METRICS: Access.ADMIN,
    "GET /healthz": Access.OPEN,
    "GET /readyz": Access.OPEN,
}
"""gRPC methods by their path, HTTP routes by method and path."""


def check_covered(calls: list[str]) -> None:
    """An edge calls this with all that it serves: what has no rule must not be served."""
    missing = sorted(set(calls) - RULES.keys())
    assert not missing, f"no rule says who may call {missing}"
