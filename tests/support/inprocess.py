"""vLLM in this process under our plugin: starts in seconds, and a test can look inside."""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

from taskmix_composer.bank.reader import Bank
from taskmix_composer.mix import Mix
from taskmix_server.engine.base import DeltaMemory
from taskmix_server.engine.config import EngineConfig
from taskmix_server.engine.vllm import compat
from taskmix_server.engine.vllm.carriers import as_shadow
from taskmix_server.engine.vllm.config import engine_options
from taskmix_server.engine.vllm.plugin import register
from tests.support.waiting import eventually

IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, the log-probability of each, and how much of the prompt was cached."""

    tokens: list[int]
    logprobs: list[float]
    num_cached_tokens: int


class InProcessEngine:
    """An engine over one base and bank; tasks are loaded from the bank as it is when asked."""

    def __init__(self, base: Path, bank: Path, **options: Any) -> None:
        register()
        self._bank_path = bank
        self._digests: dict[str, str] = {}
        self._requests: dict[str, compat.LoRARequest] = {}
        with mock.patch.dict(os.environ, IN_PROCESS):
            self._llm = LLM(**engine_options(EngineConfig(base, bank, **options)))

    def load(self, *names: str) -> None:
        bank = Bank.open(self._bank_path)
        for name in names:
            self._digests[name] = bank.entry(name).digest
            self.change("taskmix_begin_load", name, self._digests[name])

    def unload(self, name: str) -> None:
        digest = self._digests.pop(name)
        for path in [path for path in self._requests if digest in path]:
            self.ask("taskmix_forget", path)
            del self._requests[path]
        self.change("taskmix_begin_unload", digest)

    def forget(self, *mixes: Mix) -> None:
        """Let go of mixes that were asked for."""
        for mix in mixes:
            request = self._request(mix)
            assert request is not None, "the base is never registered"
            self.ask("taskmix_forget", request.lora_path)
            del self._requests[request.lora_path]

    def memory(self) -> DeltaMemory:
        return DeltaMemory(**self.ask("taskmix_memory"))

    def change(self, verb: str, *arguments: Any) -> int:
        """Begin a change and wait until it is made."""
        self.ask(verb, *arguments)
        return eventually(self._finished)[0]

    @contextmanager
    def changing(self, verb: str, *arguments: Any) -> Iterator[None]:
        """A change that is begun before the block and made after it."""
        self.ask(verb, *arguments)
        yield
        eventually(self._finished)

    def _finished(self) -> tuple[int, ...]:
        num_bytes = self.ask("taskmix_finish")
        return () if num_bytes is None else (num_bytes,)

    def ask(self, verb: str, *arguments: Any) -> Any:
        reply: Mapping[str, Any] = self._llm.collective_rpc(verb, args=arguments)[0]
        assert "error" not in reply, reply
        return reply["value"]

    def greedy(
        self,
        mixes: Sequence[Mix],
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        *,
        is_shadow: bool = False,
    ) -> list[Answer]:
        """Answer each prompt under its mix, all in one batch; as shadows do, if `is_shadow`."""
        carriers = [self._request(mix) for mix in mixes]
        if is_shadow:
            carriers = [carrier and as_shadow(carrier) for carrier in carriers]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            SamplingParams(temperature=0.0, max_tokens=num_tokens, logprobs=0, ignore_eos=True),
            lora_request=carriers,
            use_tqdm=False,
        )
        return [_answer(output) for output in outputs]

    def prompt_logprobs(
        self, mixes: Sequence[Mix], prompts: Sequence[Sequence[int]]
    ) -> list[float]:
        """Log-probabilities of the first prompt's tokens; the others only share its batch."""
        asked = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=0)
        others = SamplingParams(temperature=0.0, max_tokens=2)
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [asked, *([others] * (len(prompts) - 1))],
            lora_request=[self._request(mix) for mix in mixes],
            use_tqdm=False,
        )
        entries = outputs[0].prompt_logprobs
        return [
            entry[token].logprob for token, entry in zip(prompts[0][1:], entries[1:], strict=True)
        ]

    def close(self) -> None:
        """Make room for the next engine of this process."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()
        gc.collect()

    def _request(self, mix: Mix) -> compat.LoRARequest | None:
        if mix.is_base:
            return None
        digests = {task: self._digests[task] for task in mix.tasks}
        known = Bank.open(self._bank_path).plane_digests if mix.planes else {}
        planes = {plane: known[plane] for plane in mix.planes}
        path = f"mix:{mix.digest(digests, planes)}:{'-'.join(digests.values())}"
        if path not in self._requests:
            self.ask("taskmix_register", path, mix.canonical_json(), digests, planes)
            identity = len(self._requests) + 1
            self._requests[path] = compat.LoRARequest(path, identity, path)
        return self._requests[path]


def _answer(output: Any) -> Answer:
    completion = output.outputs[0]
    tokens = list(completion.token_ids)
    logprobs = [
        entry[token].logprob for token, entry in zip(tokens, completion.logprobs, strict=True)
    ]
    return Answer(tokens, logprobs, output.num_cached_tokens)
