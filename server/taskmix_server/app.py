"""The composition root: builds every part, wires them, runs until told to stop."""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from taskmix_composer.bank.reader import Bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.identity import DigestCache
from taskmix_server.database import Database, state_in_use
from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.engine.vllm.process import end_children, mark_engine_children
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.rest.server import HttpEdge
from taskmix_server.rpc.server import GrpcEdge
from taskmix_server.runtime.admission import Admission
from taskmix_server.runtime.certificates import CertificateFiles
from taskmix_server.runtime.changes import Changes
from taskmix_server.runtime.costs import TokenCosts
from taskmix_server.runtime.experiments import Experiments
from taskmix_server.runtime.guardrails import Guardrails
from taskmix_server.runtime.loads import TaskLoads
from taskmix_server.runtime.mixes import NamedMixStore
from taskmix_server.runtime.recipes import RecipeExpander
from taskmix_server.runtime.shadows import Shadows
from taskmix_server.runtime.state import ServerState
from taskmix_server.runtime.supervisor import EngineSupervisor
from taskmix_server.runtime.tasks import TaskRegistry
from taskmix_server.runtime.variants import VariantCache
from taskmix_server.services.access import AccessService
from taskmix_server.services.bank import BankService
from taskmix_server.services.drafts import Mixes
from taskmix_server.services.experiments import ExperimentService
from taskmix_server.services.inference import InferenceService
from taskmix_server.services.services import Services
from taskmix_server.services.tenants import TenantService
from taskmix_server.settings import Settings
from taskmix_server.telemetry.metrics import Metrics
from taskmix_server.telemetry.reporting import Reporter
from taskmix_server.tenancy.audit import AuditLog
from taskmix_server.tenancy.authenticator import Authenticator
from taskmix_server.tenancy.rules import METRICS
from taskmix_server.tenancy.store import TenantStore

logger = logging.getLogger(__name__)

MAX_THREADS = 64
CLOSE_S = 2.0  # for the last bytes of answers that are complete


def serve(settings: Settings) -> None:
    """Run the server until SIGTERM or SIGINT, then drain and return."""
    mark_engine_children()
    with state_in_use(settings.state):
        asyncio.run(_serve(settings))


@dataclass(frozen=True, slots=True)
class _Server:
    """What has been started and must be ended, in reverse."""

    engine: VllmEngine
    inference: InferenceService
    tasks: TaskRegistry
    database: Database
    grpc: GrpcEdge
    http: HttpEdge
    supervisor: EngineSupervisor
    experiments: Experiments
    loops: tuple[Callable[[], Coroutine[None, None, None]], ...]

    async def drain(self, grace_s: float) -> None:
        """Answer new requests with a refusal while those in flight end; then close both edges."""
        await self.grpc.set_serving(is_serving=False)
        await self.inference.state.drain(grace_s)
        await asyncio.gather(self.grpc.stop(CLOSE_S), self.http.stop(CLOSE_S))

    async def close(self) -> None:
        """End what no request can reach any more."""
        await self.engine.close()
        await self.experiments.close()
        self.database.close()


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the server finds in files. Without a certificate both edges speak plain text."""

    database: Database
    authenticator: Authenticator
    certificate: CertificateFiles | None


async def _serve(settings: Settings) -> None:
    _on_stop(_leave_at_once)
    # Calls of the database that wait for its lock leave threads to those that tokenise.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(MAX_THREADS))
    reporter = Reporter(settings.telemetry, Metrics())
    bank = await asyncio.to_thread(_checked_bank, settings)
    kept = await asyncio.to_thread(_kept, settings)
    engine = await VllmEngine.start(settings.engine)
    try:
        server = await _wire(settings, bank, engine, kept, reporter)
        grpc_port = await server.grpc.start(settings.host, settings.grpc_port)
        http_port = await server.http.start(settings.host, settings.http_port)
    except BaseException:
        await engine.close()
        raise
    stopping = asyncio.Event()
    _on_stop(stopping.set)
    _announce(settings.host, grpc_port, http_port)
    supervising = asyncio.create_task(server.supervisor.run())
    stopped = asyncio.create_task(stopping.wait())
    loops = [asyncio.create_task(loop()) for loop in server.loops]
    await asyncio.wait({supervising, stopped}, return_when=asyncio.FIRST_COMPLETED)
    supervising.cancel()  # an engine that dies from now on stays dead
    logger.info("draining, at most %.0f s", settings.drain_s)
    for loop in loops:
        loop.cancel()
    await server.drain(settings.drain_s)
    try:
        with suppress(asyncio.CancelledError):
            await supervising
    finally:
        await server.close()
        await asyncio.to_thread(reporter.close)


def _on_stop(react: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, react)


def _leave_at_once() -> None:
    """Stopped before it took requests: nothing to drain.

    An engine process that is still waiting for its first word from here would wait for minutes.
    """
    end_children()
    os._exit(0)


async def _wire(
    settings: Settings,
    bank: Bank,
    engine: VllmEngine,
    kept: _Kept,
    reporter: Reporter,
) -> _Server:
    metrics = reporter.metrics
    tasks = TaskRegistry(bank, engine)
    variants = VariantCache(tasks, engine)
    admission = Admission(
        settings.engine.max_num_seqs,
        settings.max_queued,
        is_shared=not kept.authenticator.is_open,
    )
    engine.watch_load(lambda load: admission.line.end(load.finished))
    engine.watch_load(
        lambda load: metrics.record_load(
            load.num_running, load.num_waiting + admission.num_waiting, load.used_kv_blocks
        )
    )
    tasks.after_load = metrics.record_task_load
    metrics.read_at_scrape(
        {
            "task_references": lambda: tasks.num_references,
            "resident_bytes": lambda: tasks.resident_bytes,
            "ready_variants": lambda: len(variants),
            "engine_up": lambda: inference.is_engine_up,
        },
        by_label={
            "task_bytes": lambda: {task.name: task.resident_bytes for task in tasks.statuses()},
            "tenant_waiting": admission.waiting_by_tenant,
        },
        delta_memory=lambda figure: getattr(tasks.memory.last, figure),
    )
    for name in bank.entries:
        started_s = time.monotonic()
        await tasks.load(name)
        logger.info("loaded task %s in %.2f s", name, time.monotonic() - started_s)
    recipes = RecipeExpander(tasks)
    mixes, audit = NamedMixStore(kept.database), AuditLog(kept.database)
    store, records = ExperimentStore(kept.database), RecordStore(kept.database)
    experiments = Experiments(store, records, tell_dropped=metrics.record_experiment_drops)
    shadows = Shadows(engine, variants, experiments, records, metrics.record_shadow)
    inference = InferenceService(
        engine,
        variants,
        recipes,
        mixes,
        ServerState(),
        reporter.report,
        admission,
        TokenCosts.over(Checkpoint.open(settings.engine.base), tasks),
        experiments,
        shadows,
    )
    services = Services(
        AccessService(
            kept.authenticator,
            (METRICS,) if settings.access.metrics_open else (),
            metrics.record_denial,
        ),
        inference,
        BankService(tasks, variants, recipes, mixes, audit, Changes(), TaskLoads(tasks)),
        TenantService(TenantStore(kept.database), audit, kept.authenticator, Changes()),
        ExperimentService(
            kept.database, store, records, experiments, Mixes(variants, recipes, mixes), Changes()
        ),
    )
    name, certificate = settings.engine.model_name, kept.certificate
    http = await HttpEdge.create(engine, services, name, certificate)
    grpc = GrpcEdge(services, certificate)
    supervisor = EngineSupervisor(
        engine,
        inference.state,
        (variants.forget_all, tasks.restore, http.follow_engine),
        metrics.record_engine_restart,
    )
    guardrails = Guardrails(
        kept.database,
        store,
        experiments,
        tell_check=metrics.record_guardrail_check,
        tell_stop=metrics.record_guardrail_stop,
    )
    return _Server(
        engine,
        inference,
        tasks,
        kept.database,
        grpc,
        http,
        supervisor,
        experiments,
        (guardrails.run, shadows.run),
    )


def _kept(settings: Settings) -> _Kept:
    """Opens what is in files; refuses what would let anybody in unasked."""
    access = settings.access
    database = Database.at(settings.state)
    authenticator = Authenticator(TenantStore(database))
    access.check_host(settings.host, is_open=authenticator.is_open)
    certificate = None
    if access.tls_cert is not None and access.tls_key is not None:
        certificate = CertificateFiles(access.tls_cert, access.tls_key)
    return _Kept(database, authenticator, certificate)


def _checked_bank(settings: Settings) -> Bank:
    """The bank, after its base was found to be the one being served."""
    bank = Bank.open(settings.engine.bank)
    cache = settings.engine.digest_cache
    bank.check_base(Checkpoint.open(settings.engine.base), DigestCache(cache) if cache else None)
    return bank


def _announce(host: str, grpc_port: int, http_port: int) -> None:
    """The one line on stdout that says the server takes requests."""
    shown = f"[{host}]" if ":" in host else host
    ready = {"ready": True, "grpc": f"{shown}:{grpc_port}", "http": f"{shown}:{http_port}"}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
