"""The runtime and the services over a small bank and a fake engine."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import prometheus_client
import pytest

from taskmix_composer.bank.reader import Bank
from taskmix_composer.build import build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms
from taskmix_server.database import Database
from taskmix_server.runtime.changes import Changes
from taskmix_server.runtime.mixes import NamedMixStore
from taskmix_server.runtime.recipes import RecipeExpander
from taskmix_server.runtime.state import ServerState
from taskmix_server.runtime.tasks import TaskRegistry
from taskmix_server.runtime.variants import VariantCache
from taskmix_server.services.access import AccessService
from taskmix_server.services.bank import BankService
from taskmix_server.services.inference import InferenceService
from taskmix_server.services.services import Services
from taskmix_server.services.tenants import TenantService
from taskmix_server.telemetry.metrics import Metrics
from taskmix_server.tenancy.audit import AuditLog
from taskmix_server.tenancy.authenticator import Authenticator
from taskmix_server.tenancy.store import TenantStore
from tests.unit.composer.models import EMBEDDING, make_weights, save_model, tuned
from tests.unit.server.fakes import FakeEngine

MAX_VARIANTS = 3


@dataclass(frozen=True)
class Parts:
    """A server without edges. Tasks `head` (it changes the tied head) and `body` are loaded, `late`
    is not."""

    base: Path
    bank: Path
    engine: FakeEngine
    tasks: TaskRegistry
    variants: VariantCache
    recipes: RecipeExpander
    inference: InferenceService
    admin: BankService
    services: Services
    audit: AuditLog
    store: TenantStore
    registry: prometheus_client.CollectorRegistry


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    weights = make_weights()
    base = save_model(tmp_path / "base", weights)
    head = save_model(tmp_path / "head", tuned(weights, seed=1))
    for seed, name in enumerate(("body", "late"), start=2):
        unchanged = {EMBEDDING: weights[EMBEDDING]}
        save_model(tmp_path / name, {**tuned(weights, seed=seed), **unchanged})
    path = tmp_path / "bank"
    sources = {"head": head, "body": tmp_path / "body", "late": tmp_path / "late"}
    build_bank(base, sources, Forms(Scheme("dense")), path)
    engine = FakeEngine()
    tasks = TaskRegistry(path, Bank.open(path), engine)
    variants = VariantCache(tasks, engine, MAX_VARIANTS)
    for name in ("head", "body"):
        await tasks.load(name)
    engine.log.clear()
    database = Database.at(tmp_path / "state")
    mixes, audit, store = NamedMixStore(database), AuditLog(database), TenantStore(database)
    registry = prometheus_client.CollectorRegistry()
    metrics = Metrics(registry)
    recipes = RecipeExpander(tasks)
    inference = InferenceService(
        engine, variants, recipes, mixes, ServerState(), metrics.record_request
    )
    admin = BankService(tasks, variants, recipes, mixes, audit, Changes())
    services = with_access(inference, admin, audit, store, metrics.record_denial)
    yield Parts(
        base,
        path,
        engine,
        tasks,
        variants,
        recipes,
        inference,
        admin,
        services,
        audit,
        store,
        registry,
    )
    database.close()


def with_access(
    inference: InferenceService,
    admin: BankService,
    audit: AuditLog,
    store: TenantStore,
    tell_denial: Callable[[str], None] = lambda _: None,
) -> Services:
    """All services, for the tenants that there are now."""
    authenticator = Authenticator(store)
    tenants = TenantService(store, audit, authenticator, Changes())
    return Services(
        AccessService(authenticator, tell_denial=tell_denial), inference, admin, tenants
    )
