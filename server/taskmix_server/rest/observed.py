"""The engine's client as vLLM's app sees it: prompts wait for their turn, outputs are counted.

vLLM's app makes the answer, so the edge would have to parse its events to know their tokens. Its
serving classes ask the client for each prompt of a request, and get the tokens as numbers.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from taskmix_server.domain.generation import SamplingOptions
from taskmix_server.engine.vllm.phases import phases_of
from taskmix_server.errors import InvalidRequestError, UnavailableError
from taskmix_server.rest.models import RESOLVED, ResolvedModel
from taskmix_server.runtime.experiments.copies import Copy
from taskmix_server.telemetry.requests import EngineRun


class ObservedClient:
    """Stands for an engine client; all but `generate` is the client's own."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any]:
        """The client's outputs, for the request being served by the calling task.

        Raises InvalidRequestError at once, while vLLM's app has not begun an answer.
        """
        resolved = RESOLVED.get()
        resolved.ticket.check_prompt(len(prompt["prompt_token_ids"]))
        return self._outputs(resolved, prompt, sampling_params, request_id, options)

    async def _outputs(
        self,
        resolved: ResolvedModel,
        prompt: Any,
        sampling_params: Any,
        request_id: str,
        options: dict[str, Any],
    ) -> AsyncGenerator[Any]:
        """Wait for the prompt's turn, then count every output and pass it on."""
        record, num_tokens = resolved.record, len(prompt["prompt_token_ids"])
        copy = resolved.ticket.take_copy()
        whole = resolved.ticket.turn(request_id, sampling_params.max_tokens, sampling_params.n)
        try:
            with record.run() as run, whole as turn:
                options["priority"] = await turn.wait(num_tokens)
                outputs = self._client.generate(prompt, sampling_params, request_id, **options)
                async with aclosing(outputs):
                    async for output in outputs:
                        _check_grammar(output, sampling_params)
                        _advance(run, output)
                        record.finish_reason = _finish_reason(output) or record.finish_reason
                        _copy(output, sampling_params, copy)
                        turn.count(run.num_prompt_tokens, run.num_output_tokens)
                        yield output
        except EngineDeadError:
            record.error = UnavailableError.__name__  # a stream has its status already
            raise


def _check_grammar(output: Any, sampling_params: Any) -> None:
    """vLLM ends an answer whose grammar leaves it no token as if the fault were the server's."""
    is_failed = any(piece.finish_reason == "error" for piece in output.outputs)
    if is_failed and sampling_params.structured_outputs is not None:
        raise VLLMValidationError("what structured outputs allow cannot be generated")


def _advance(run: EngineRun, output: Any) -> None:
    """Streams give new tokens at a time; whole answers come in one output."""
    run.num_prompt_tokens = len(output.prompt_token_ids or ())
    run.num_cached_tokens = output.num_cached_tokens or 0
    tokens = {piece.index: len(piece.token_ids) for piece in output.outputs}
    run.advance(time.monotonic(), tokens, phases_of(output))


def _finish_reason(output: Any) -> str:
    """Why an answer ended with this output; empty if none did."""
    reasons = [str(piece.finish_reason) for piece in output.outputs if piece.finish_reason]
    return reasons[-1] if reasons else ""


def _copy(output: Any, params: Any, copy: Copy | None) -> None:
    """Let a copy hear what is new in the first answer."""
    if copy is None:
        return
    for piece in output.outputs:
        if piece.index == 0:
            copy.hear(piece.token_ids)
    if output.finished:
        with suppress(InvalidRequestError):  # vLLM allows more: such an answer is not copied
            copy.end(output.prompt_token_ids or (), _sampling(params))


def _sampling(params: Any) -> SamplingOptions:
    """vLLM's sampling parameters in the server's terms."""
    return SamplingOptions(
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=max(0, params.top_k),
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.seed,
        stop=tuple(params.stop or ()),
        ignore_eos=params.ignore_eos,
    )
