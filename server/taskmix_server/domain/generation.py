"""A request for text and what comes back, free of transport and engine."""

import math
from dataclasses import dataclass, field
from enum import Enum

from taskmix_composer.mix import Mix
from taskmix_composer.recipe import Recipe
from taskmix_server.domain.limits import (
    MAX_COMPLETIONS,
    MAX_MESSAGES,
    MAX_PROMPT_TOKENS,
    check_count,
    check_stop,
    check_text,
)
from taskmix_server.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


Prompt = str | tuple[int, ...] | tuple[ChatMessage, ...]
"""Text, token ids, or a conversation for the model's chat template."""


@dataclass(frozen=True, slots=True)
class NamedMix:
    """The mix registered under a name."""

    name: str


@dataclass(frozen=True, slots=True)
class ExperimentTarget:
    """The arm that an experiment assigns to a subject."""

    name: str
    subject: str


Target = Mix | Recipe | NamedMix | ExperimentTarget
"""Which weights answer; the empty mix is the base alone."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are chosen. Names and meanings are vLLM's; temperature 0 is greedy."""

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        self._check_counts()
        numbers = (self.temperature, self.top_p, self.min_p)
        penalties = (self.presence_penalty, self.frequency_penalty)
        if not all(math.isfinite(number) for number in (*numbers, *penalties)):
            raise InvalidRequestError("sampling options must be finite numbers")
        if self.temperature < 0.0:
            raise InvalidRequestError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidRequestError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise InvalidRequestError(f"min_p must be in [0, 1], got {self.min_p}")

    def _check_counts(self) -> None:
        if self.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens must be 1 or more, got {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be in [0, max_tokens], got {self.min_tokens}"
            )
        if self.top_k < 0:
            raise InvalidRequestError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 1 <= self.n <= MAX_COMPLETIONS:
            raise InvalidRequestError(f"n must be in [1, {MAX_COMPLETIONS}], got {self.n}")
        check_stop(self.stop)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request as a service takes it. `request_id` is unique; lower priority is earlier."""

    request_id: str
    prompt: Prompt
    target: Target
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    priority: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.prompt, str):
            check_text(len(self.prompt))
            return
        turns = [turn for turn in self.prompt if isinstance(turn, ChatMessage)]
        check_count(len(turns), MAX_MESSAGES, "messages")
        check_text(sum(len(turn.role) + len(turn.content) for turn in turns))
        check_count(len(self.prompt), MAX_PROMPT_TOKENS, "token ids")


class FinishReason(Enum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, or the piece of it that is new. `logprobs`: one per token, or empty."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted; `cached_tokens` of the prompt had their keys and values reused."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds from the request to its first and to its last token."""

    ttft_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Identity:
    """What answered: enough to ask for the same answer again."""

    request_id: str
    mix_digest: str
    mix_json: str
    bank_revision: str
    arm: str = ""


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """A piece of an answer; identity comes with the first, usage and timings with the last."""

    completions: tuple[Completion, ...]
    prompt_logprobs: tuple[float, ...] = ()
    identity: Identity | None = None
    usage: Usage | None = None
    timings: Timings | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer."""

    completions: tuple[Completion, ...]
    prompt_logprobs: tuple[float, ...]
    usage: Usage
    timings: Timings
    identity: Identity
