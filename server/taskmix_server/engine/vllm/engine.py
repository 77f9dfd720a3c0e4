"""`Engine` on vLLM's AsyncLLM: requests carry a variant as a LoRA request."""

import asyncio
import itertools
from argparse import Namespace
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from jinja2 import TemplateError
from vllm import SamplingParams
from vllm.exceptions import QueueOverflowError, VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

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
from taskmix_server.engine.base import DeltaMemory, EngineChunk, EngineLoad, WaitTurn
from taskmix_server.engine.config import EngineConfig
from taskmix_server.engine.vllm import clients, compat
from taskmix_server.engine.vllm.carriers import as_shadow
from taskmix_server.engine.vllm.clients import ObserveLoad
from taskmix_server.engine.vllm.phases import phases_of
from taskmix_server.engine.vllm.process import end_children
from taskmix_server.engine.vllm.worker import Reply

SHUTDOWN_S = 5.0
CHANGE_POLL_S = 0.03
"""Between two looks at whether a task is ready; each takes its turn among the engine's steps."""


class VllmEngine:
    """Owns an AsyncLLM, and another one after each restart.

    client: the one that runs. arguments: those of `vllm serve` that it was started with. vLLM's
    HTTP app is bound to both.
    """

    client: AsyncLLM
    arguments: Namespace

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._observers: list[ObserveLoad] = []
        self._ids = itertools.count(1)  # goes on after a restart: an old number means nothing new
        self._requests: dict[str, compat.LoRARequest] = {}

    @classmethod
    async def start(cls, config: EngineConfig) -> "VllmEngine":
        """Start vLLM's processes; takes tens of seconds, off the event loop."""
        engine = cls(config)
        engine.arguments, engine.client = await clients.start(config, engine._observers)
        return engine

    async def restart(self) -> None:
        dead = self.client
        await asyncio.to_thread(dead.engine_core.shutdown, timeout=SHUTDOWN_S)
        self.arguments, self.client = await clients.start(self._config, self._observers)
        self._requests.clear()
        for observe in self._observers:
            observe(EngineLoad(0, 0, 0))
        # Its tokenizers too, which requests that were on their way in may have used until now.
        await asyncio.to_thread(dead.shutdown, timeout=SHUTDOWN_S)

    async def died(self) -> None:
        await clients.death_of(self.client)

    def kill(self) -> None:
        end_children()

    async def load_task(self, name: str, digest: str) -> int:
        return await self._changed("taskmix_begin_load", name, digest)

    async def unload_task(self, digest: str) -> None:
        with suppress(errors.UnavailableError):  # a dead engine holds nothing
            await self._changed("taskmix_begin_unload", digest)

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
            with suppress(errors.UnavailableError):
                await self._ask("taskmix_forget", request.lora_path)

    async def memory(self) -> DeltaMemory:
        return DeltaMemory(**await self._ask("taskmix_memory"))

    def lora_request(self, variant: Variant) -> compat.LoRARequest | None:
        """How vLLM knows a registered variant; None for the base.

        Raises UnavailableError if the engine that knew it has died since.
        """
        if variant.is_base:
            return None
        request = self._requests.get(variant.digest)
        if request is None:
            raise clients.stopped()
        return as_shadow(request) if variant.is_shadow else request

    async def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingOptions,
        variant: Variant,
        turn: WaitTurn,
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
                priority=await turn(len(rendered["prompt_token_ids"])),
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
            raise clients.stopped() from error
        except EngineGenerateError as error:
            raise errors.InternalError("the engine failed on this request") from error

    def watch_load(self, observe: ObserveLoad) -> None:
        self._observers.append(observe)

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

    async def _changed(self, verb: str, *arguments: Any) -> int:
        """Begin a change and wait until it is made; the bytes that its task takes then."""
        await self._ask(verb, *arguments)
        while (num_bytes := await self._ask("taskmix_finish")) is None:  # noqa: ASYNC110 - no event
            await asyncio.sleep(CHANGE_POLL_S)
        return int(num_bytes)

    async def _ask(self, verb: str, *arguments: Any) -> Any:
        replies: list[Reply] = await clients.call(self.client, verb, arguments)
        for reply in replies:
            if "error" in reply:
                raise _error_of(reply)
        return replies[0]["value"]


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
        prompt_token_ids=tuple(output.prompt_token_ids or ()) if output.finished else (),
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
