"""What calls answer with: frozen values, free of protocol buffers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted; `cached_tokens` are those of the prompt whose keys and values were reused."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, seen by the server, from the request to its first and to its last token."""

    ttft_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation of the prompt.

    `logprobs` holds one natural logarithm per token, or nothing unless asked for. `finish_reason`
    is `stop`, `length`, or None while the completion goes on.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What answered: enough to ask for the same answer again.

    `mix` is canonical JSON and may be passed as `mix` again; `arm` is empty outside experiments.
    """

    request_id: str
    mix: str
    mix_digest: str
    bank_revision: str
    arm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Provenance):
    """A complete answer. `text` and its neighbours are those of the first completion."""

    completions: tuple[Completion, ...]
    usage: Usage
    timings: Timings
    prompt_logprobs: tuple[float, ...]

    @property
    def text(self) -> str:
        """The generated text."""
        return self.completions[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The generated tokens."""
        return self.completions[0].token_ids

    @property
    def logprobs(self) -> tuple[float, ...]:
        """One natural logarithm per generated token, when asked for."""
        return self.completions[0].logprobs

    @property
    def finish_reason(self) -> str | None:
        """`stop` or `length`."""
        return self.completions[0].finish_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(Provenance):
    """The new piece of one completion; `usage` and `timings` come with the last one."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str | None
    usage: Usage | None
    timings: Timings | None


@dataclass(frozen=True, slots=True)
class Task:
    """One task of the bank.

    `state` is `on disk`, `loading`, `resident`, `unloading`, or `offloaded`: served, and loaded
    when a request names it. `num_bytes` is the size of its encoded deltas; `num_references` counts
    the requests in flight that use it.
    """

    name: str
    scheme: str
    num_bytes: int
    digest: str
    state: str
    num_references: int


@dataclass(frozen=True, slots=True)
class NamedMix:
    """A registered mix, as canonical JSON. The digest is empty while a task of it is absent."""

    name: str
    mix: str
    mix_digest: str
