"""`Engine` on vLLM's AsyncLLM: requests carry a variant as a LoRA request."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from jinja2 import TemplateError
from vllm import SamplingParams
from vllm.exceptions import QueueOverflowError, VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import StatLoggerBase

from taskmix_composer import errors as composer_errors
from taskmix_server import errors
from taskmix_server.domain.generation import (
    ChatMessage,
    Completion,
    FinishReason,
    Prompt,
    SamplingOptions,
)
from taskmix_server.domain.variant import Variant
from taskmix_server.engine.base import DeltaMemory, EngineChunk, EngineLoad
from taskmix_server.engine.vllm import compat
from taskmix_server.engine.vllm.phases import phases_of
from taskmix_server.engine.vllm.worker import Reply

SHUTDOWN_S = 10.0


class VllmEngine:
    """Owns an AsyncLLM; `client` is what vLLM's HTTP app is bound to."""

    def __init__(self, client: AsyncLLM, stats: "LoadWatcher") -> None:
        self.client = client
        self._stats = stats
        self._ids = itertools.count(1)
        self._requests: dict[str, compat.LoRARequest] = {}

    @classmethod
    async def start(cls, vllm_config: Any) -> "VllmEngine":
        """Start vLLM's processes; takes tens of seconds, off the event loop."""
        stats = LoadWatcher(vllm_config)
        try:
            client = await asyncio.to_thread(
                AsyncLLM.from_vllm_config, vllm_config, stat_loggers=[lambda *_: stats]
            )
        except RuntimeError as error:
            raise errors.UnavailableError(
                f"vLLM did not start ({error}); its own messages above say why"
            ) from error
        compat.drop_adapter_labels(client)
        return cls(client, stats)

    async def load_task(self, name: str, digest: str) -> int:
        return int(await self._ask("taskmix_load", name, digest))

    async def unload_task(self, digest: str) -> None:
        await self._ask("taskmix_unload", digest)

    async def register_variant(self, variant: Variant) -> None:
        if variant.is_base or variant.digest in self._requests:
            return
        # A number of its own, lest keys and values of an earlier registration be reused: its last
        # aborted rows may have run without their tasks.
        identity = next(self._ids)
        path = f"mix:{variant.digest}:{identity}"
        mix_json = variant.mix.canonical_json()
        contents = dict(variant.entries), dict(variant.planes)
        await self._ask("taskmix_register", path, mix_json, *contents)
        self._requests[variant.digest] = compat.LoRARequest(path, identity, path)

    async def forget_variant(self, variant: Variant) -> None:
        request = self._requests.pop(variant.digest, None)
        if request is not None:
            await self._ask("taskmix_forget", request.lora_path)

    async def memory(self) -> DeltaMemory:
        return DeltaMemory(**await self._ask("taskmix_memory"))

    def lora_request(self, variant: Variant) -> compat.LoRARequest | None:
        """How vLLM knows a registered variant; None for the base."""
        return None if variant.is_base else self._requests[variant.digest]

    async def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingOptions,
        variant: Variant,
        priority: int,
        cache_salt: str | None,
    ) -> AsyncGenerator[EngineChunk]:
        """Run a request; closing the iterator aborts it in the engine."""
        try:
            form = await asyncio.to_thread(self._form, prompt)
            if cache_salt is not None:
                form["cache_salt"] = cache_salt
            (rendered,) = await self.client.renderer.render_cmpl_async([form])
            outputs = self.client.generate(
                rendered,
                sampling_params(sampling),
                request_id,
                lora_request=self.lora_request(variant),
                priority=priority,
            )
            async with aclosing(outputs):
                async for output in outputs:
                    yield to_chunk(output)
        except (VLLMClientError, TemplateError) as error:
            raise errors.InvalidRequestError(str(error)) from error
        except ValueError as error:  # vLLM's checks of lengths and options
            raise errors.InvalidRequestError(str(error)) from error
        except QueueOverflowError as error:
            raise errors.ResourceExhaustedError(str(error)) from error
        except EngineDeadError as error:
            message = "the engine stopped; the request may be retried"
            raise errors.UnavailableError(message) from error
        except EngineGenerateError as error:
            raise errors.InternalError("the engine failed on this request") from error

    def watch_load(self, observe: Callable[[EngineLoad], None]) -> None:
        self._stats.observers.append(observe)

    @property
    def is_healthy(self) -> bool:
        return not self.client.errored

    async def close(self) -> None:
        await asyncio.to_thread(self.client.shutdown, timeout=SHUTDOWN_S)

    def _form(self, prompt: Prompt) -> Any:
        """The prompt in the form that vLLM's renderer takes."""
        if isinstance(prompt, str):
            return {"prompt": prompt}
        if prompt and isinstance(prompt[0], ChatMessage):
            return TokensPrompt(prompt_token_ids=self._render_chat(prompt))
        return TokensPrompt(prompt_token_ids=list(prompt))

    def _render_chat(self, messages: tuple[ChatMessage, ...]) -> list[int]:
        tokenizer: Any = self.client.get_tokenizer()
        if not tokenizer.chat_template:
            raise errors.InvalidRequestError(
                "the base model has no chat template; send a prompt instead of messages"
            )
        turns = [{"role": message.role, "content": message.content} for message in messages]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        return [int(token) for token in ids]

    async def _ask(self, verb: str, *arguments: Any) -> Any:
        try:
            replies: list[Reply] = await self.client.collective_rpc(verb, args=arguments)
        except EngineDeadError as error:
            raise errors.UnavailableError("the engine stopped; try again later") from error
        for reply in replies:
            if "error" in reply:
                raise _error_of(reply)
        return replies[0]["value"]


class LoadWatcher(StatLoggerBase):
    """Tells observers how busy the engine is after each of its steps."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._cache = vllm_config.cache_config
        self.observers: list[Callable[[EngineLoad], None]] = []

    def record(self, scheduler_stats: Any, *args: Any, **kwargs: Any) -> None:
        if scheduler_stats is None:
            return
        load = EngineLoad(
            num_running=scheduler_stats.num_running_reqs,
            num_waiting=scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
            used_kv_blocks=round(
                scheduler_stats.kv_cache_usage * (self._cache.num_gpu_blocks or 0)
            ),
        )
        for observe in self.observers:
            observe(load)

    def log_engine_initialized(self) -> None:
        """vLLM asks for it; there is nothing to say."""


def sampling_params(options: SamplingOptions) -> SamplingParams:
    """vLLM's form of the options; log-probabilities are of the chosen token only."""
    return SamplingParams(
        n=options.n,
        max_tokens=options.max_tokens,
        min_tokens=options.min_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        seed=options.seed,
        stop=list(options.stop),
        ignore_eos=options.ignore_eos,
        logprobs=0 if options.logprobs else None,
        prompt_logprobs=0 if options.prompt_logprobs else None,
        output_kind=RequestOutputKind.DELTA,
    )


def to_chunk(output: RequestOutput) -> EngineChunk:
    """vLLM's delta output in the server's terms."""
    return EngineChunk(
        completions=tuple(_completion(piece) for piece in output.outputs),
        num_prompt_tokens=len(output.prompt_token_ids or ()),
        num_cached_tokens=output.num_cached_tokens or 0,
        prompt_logprobs=_prompt_logprobs(output),
        is_finished=output.finished,
        phases=phases_of(output),
    )


def _completion(piece: CompletionOutput) -> Completion:
    token_ids = tuple(piece.token_ids)
    logprobs = tuple(
        entry[token].logprob for token, entry in zip(token_ids, piece.logprobs or (), strict=False)
    )
    reason = FinishReason(piece.finish_reason) if piece.finish_reason in _REASONS else None
    return Completion(piece.index, piece.text, token_ids, logprobs, reason)


_REASONS = {reason.value for reason in FinishReason}


def _prompt_logprobs(output: RequestOutput) -> tuple[float, ...]:
    entries = output.prompt_logprobs or []
    tokens = output.prompt_token_ids or []
    return tuple(
        entry[token].logprob
        for token, entry in zip(tokens, entries, strict=False)
        if entry is not None
    )


def _error_of(reply: Reply) -> Exception:
    for module in (errors, composer_errors):
        kind = getattr(module, reply["error"], None)
        if kind is not None:
            return kind(reply["message"])  # type: ignore[no-any-return]
    return errors.InternalError(reply["message"])
