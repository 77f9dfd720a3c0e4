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
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.runtime.admission.admission import Admission
from taskmix_server.runtime.admission.costs import TokenCosts
from taskmix_server.runtime.changes import Changes
from taskmix_server.runtime.experiments.running import Experiments
from taskmix_server.runtime.experiments.shadows import Shadows
from taskmix_server.runtime.loads import TaskLoads
from taskmix_server.runtime.mixes import NamedMixStore
from taskmix_server.runtime.recipes import RecipeExpander
from taskmix_server.runtime.state import ServerState
from taskmix_server.runtime.tasks import TaskRegistry
from taskmix_server.runtime.variants import VariantCache
from taskmix_server.services.access import AccessService
from taskmix_server.services.bank import BankService
from taskmix_server.services.drafts import Mixes
from taskmix_server.services.experiments import ExperimentService
from taskmix_server.services.inference import InferenceService
from taskmix_server.services.services import Services
from taskmix_server.services.targets import Targets
from taskmix_server.services.tenants import TenantService
from taskmix_server.telemetry.metrics import Metrics
from taskmix_server.tenancy.audit import AuditLog
from taskmix_server.tenancy.authenticator import Authenticator
from taskmix_server.tenancy.store import TenantStore
from tests.unit.composer.models import EMBEDDING, make_weights, save_model, tuned
from tests.unit.server.fakes import FakeEngine

MAX_VARIANTS = 3
MAX_RUNNING = 8
MAX_QUEUED = 300


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
    experiments: ExperimentService
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
    tasks = TaskRegistry(Bank.open(path), engine)
    variants = VariantCache(tasks, engine, MAX_VARIANTS)
    for name in ("head", "body"):
        await tasks.load(name)
    engine.log.clear()
    database = Database.at(tmp_path / "state")
    mixes, audit, store = NamedMixStore(database), AuditLog(database), TenantStore(database)
    registry = prometheus_client.CollectorRegistry()
    metrics = Metrics(registry)
    recipes = RecipeExpander(tasks)
    experiments = experiments_over(database, Mixes(variants, recipes, mixes))
    inference = InferenceService(
        engine,
        variants,
        Targets(recipes, mixes, experiments.running),
        ServerState(),
        metrics.record_request,
        Admission(MAX_RUNNING, MAX_QUEUED, is_shared=True),
        TokenCosts(tasks, base_bytes=400),
        Shadows(engine, variants, experiments.running),
    )
    admin = BankService(tasks, variants, recipes, mixes, audit, Changes(), TaskLoads(tasks))
    services = with_access(inference, admin, experiments, audit, store, metrics.record_denial)
    yield Parts(
        base,
        path,
        engine,
        tasks,
        variants,
        recipes,
        inference,
        admin,
        experiments,
        services,
        audit,
        store,
        registry,
    )
    database.close()


def experiments_over(database: Database, mixes: Mixes) -> ExperimentService:
    """Experiments of a database; outcomes of unknown subjects are refused at once."""
    store, records = ExperimentStore(database), RecordStore(database)
    running = Experiments(store, records)
    return ExperimentService(database, store, records, running, mixes, Changes(), patience_s=0.0)


def with_access(
    inference: InferenceService,
    admin: BankService,
    experiments: ExperimentService,
    audit: AuditLog,
    store: TenantStore,
    tell_denial: Callable[[str], None] = lambda _: None,
) -> Services:
    """All services, for the tenants that there are now."""
    authenticator = Authenticator(store)
    tenants = TenantService(store, audit, authenticator, Changes())
    return Services(
        AccessService(authenticator, tell_denial=tell_denial),
        inference,
        admin,
        tenants,
        experiments,
    )
