"""vLLM's AsyncLLM: started off the event loop, and never waited for once its engine has died."""

import asyncio
from argparse import Namespace
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from taskmix_server.engine.base import EngineLoad
from taskmix_server.engine.config import EngineConfig
from taskmix_server.engine.vllm import compat
from taskmix_server.engine.vllm.config import server_config
from taskmix_server.engine.vllm.process import end_children
from taskmix_server.errors import UnavailableError

POLL_S = 0.1

ResultT = TypeVar("ResultT")
ObserveLoad = Callable[[EngineLoad], None]


async def start(
    config: EngineConfig, observers: Sequence[ObserveLoad]
) -> tuple[Namespace, AsyncLLM]:
    """Start vLLM's processes; gives the arguments of `vllm serve` and the client of the engine.

    A caller that is cancelled leaves no process behind. Raises UnavailableError if vLLM does not
    start, and what `server_config` does if it cannot be told what to serve.
    """
    starting = asyncio.create_task(asyncio.to_thread(_start, config, observers))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        while not starting.done():  # it may be about to start one
            end_children()
            await asyncio.wait({starting}, timeout=POLL_S)
        end_children()
        await asyncio.gather(starting, return_exceptions=True)
        raise


async def call(client: AsyncLLM, verb: str, arguments: tuple[Any, ...]) -> Any:
    """Ask every worker; UnavailableError if the engine has died or dies meanwhile."""
    return await answer_of(client, client.collective_rpc(verb, args=arguments))


async def answer_of(client: AsyncLLM, asking: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Wait for what asks the client's engine; UnavailableError if it has died or dies meanwhile.

    vLLM leaves calls to an engine that dies without an answer.
    """
    answer = asyncio.create_task(asking)
    dying = asyncio.create_task(death_of(client))
    try:
        await asyncio.wait({answer, dying}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
    except EngineDeadError as error:
        raise stopped() from error
    finally:
        answer.cancel()
        dying.cancel()
    raise stopped()


async def death_of(client: AsyncLLM) -> None:
    """Return once the client's engine has died."""
    while not client.errored:  # noqa: ASYNC110 - vLLM has a flag, no event
        await asyncio.sleep(POLL_S)


def stopped() -> UnavailableError:
    """What ends the requests of an engine that has died."""
    return UnavailableError("the engine stopped and is started again; retry in a while")


def _start(config: EngineConfig, observers: Sequence[ObserveLoad]) -> tuple[Namespace, AsyncLLM]:
    arguments, vllm_config = server_config(config)
    stats = LoadWatcher(vllm_config, observers)
    openmp = compat.OMPProcessManager(vllm_config)
    try:
        with openmp.configure_omp_envs(rank=0, local_rank=0):  # for the process started in it
            client = AsyncLLM.from_vllm_config(vllm_config, stat_loggers=[lambda *_: stats])
    except (RuntimeError, OSError, ValueError) as error:
        raise UnavailableError(
            f"vLLM did not start ({error}); its own messages above say why"
        ) from error
    compat.drop_adapter_labels(client)
    return arguments, client


class LoadWatcher(StatLoggerBase):
    """Tells observers how busy the engine is after each of its steps."""

    def __init__(self, vllm_config: Any, observers: Sequence[ObserveLoad]) -> None:
        self._cache = vllm_config.cache_config
        self._observers = observers

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        if scheduler_stats is None:
            return
        finished = iteration_stats.finished_requests if iteration_stats is not None else ()
        load = EngineLoad(
            num_running=scheduler_stats.num_running_reqs,
            num_waiting=scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
            used_kv_blocks=round(
                scheduler_stats.kv_cache_usage * (self._cache.num_gpu_blocks or 0)
            ),
            finished=tuple(answer.request_id for answer in finished),
        )
        for observe in self._observers:
            observe(load)

    def log_engine_initialized(self) -> None:
        """vLLM asks for it; there is nothing to say."""
