"""The services that both edges are built on."""

from dataclasses import dataclass

from taskmix_server.services.access import AccessService
from taskmix_server.services.bank import BankService
from taskmix_server.services.experiments import ExperimentService
from taskmix_server.services.inference import InferenceService
from taskmix_server.services.tenants import TenantService


@dataclass(frozen=True, slots=True)
class Services:
    """One of each, wired by the composition root."""

    access: AccessService
    inference: InferenceService
    bank: BankService
    tenants: TenantService
    experiments: ExperimentService
