"""What one generation request leaves behind: filled while it runs, reported when it has ended."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from taskmix_server.telemetry.labels import DEFAULT_TENANT

MAX_RUNS = 16
"""Runs of one request that are kept one by one; a body may hold more prompts than that."""

TRACE_HEADERS = ("traceparent", "tracestate")
"""W3C trace context, as both edges carry it."""


@dataclass(frozen=True, slots=True)
class Phases:
    """When the engine took a prompt in, scheduled it, and gave its first and last token.

    Seconds on the machine's monotonic clock.
    """

    queued_s: float
    scheduled_s: float
    first_token_s: float
    last_token_s: float


@dataclass(slots=True)
class EngineRun:
    """One prompt in the engine. Times are seconds on the monotonic clock."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_tokens: dict[int, int] = field(default_factory=dict)  # by the index of the completion
    first_token_s: float | None = None
    last_token_s: float | None = None
    phases: Phases | None = None

    def advance(self, now_s: float, tokens: Mapping[int, int], phases: Phases | None) -> None:
        """Take in new tokens, counted by completion, which are here now.

        phases: given with the run's last tokens. A run whose tokens all come at once has its first
        and last token when the engine made them.
        """
        for index, count in tokens.items():
            self.num_tokens[index] = self.num_tokens.get(index, 0) + count
        if any(tokens.values()):
            whole = phases if self.first_token_s is None else None
            if self.first_token_s is None:
                self.first_token_s = whole.first_token_s if whole else now_s
            self.last_token_s = whole.last_token_s if whole else now_s
        self.phases = phases or self.phases

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all completions so far."""
        return sum(self.num_tokens.values())

    @property
    def inter_token_s(self) -> float | None:
        """Mean seconds between the tokens of the longest completion; None under two tokens."""
        num_steps = max(self.num_tokens.values(), default=0) - 1
        if num_steps < 1 or self.first_token_s is None or self.last_token_s is None:
            return None
        return (self.last_token_s - self.first_token_s) / num_steps


@dataclass(slots=True)
class RequestRecord:
    """A generation request of an edge.

    carrier: the caller's W3C trace headers. mix: what stands for it in labels, not its terms.
    arm: an experiment's, as `NAME@VERSION/ARM`. error: the name of what ended it, empty for an
    answer. finish_reason: why the answer ended. limit: which limit it met, if one. status: as the
    caller saw it. watchers: told of the end of this request alone.
    started_s, resolved_s, ended_s: seconds on the monotonic clock. started_at_ns: the same start on
    the wall clock.
    """

    request_id: str
    edge: str = ""
    tenant: str = DEFAULT_TENANT
    carrier: Mapping[str, str] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)
    started_at_ns: int = field(default_factory=time.time_ns)
    mix: str = ""
    tasks: tuple[str, ...] = ()
    digest: str = ""
    arm: str = ""
    resolved_s: float | None = None
    ended_s: float | None = None
    error: str = ""
    limit: str = ""
    status: str = ""
    trace_id: str = ""
    runs: list[EngineRun] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    finish_reason: str = ""
    watchers: "list[Report]" = field(default_factory=list)

    def resolve(self, mix: str, tasks: tuple[str, ...], digest: str, arm: str) -> None:
        """Take in what answers: the label that stands for it, its tasks, digest and arm."""
        self.mix, self.tasks, self.digest, self.arm = mix, tasks, digest, arm
        self.resolved_s = time.monotonic()

    @contextmanager
    def run(self) -> Iterator[EngineRun]:
        """A run for one prompt, counted when the block ends; over `MAX_RUNS` it is not kept."""
        run = EngineRun()
        if len(self.runs) < MAX_RUNS:
            self.runs.append(run)
        try:
            yield run
        finally:
            self.num_prompt_tokens += run.num_prompt_tokens
            self.num_cached_tokens += run.num_cached_tokens
            self.num_output_tokens += run.num_output_tokens

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the request to its first token; None if there was none."""
        firsts = [run.first_token_s for run in self.runs if run.first_token_s is not None]
        return min(firsts) - self.started_s if firsts else None

    @property
    def duration_s(self) -> float:
        """Seconds from the request to its end."""
        assert self.ended_s is not None, "asked for before the request had ended"
        return self.ended_s - self.started_s


Report = Callable[[RequestRecord], None]
"""Told of each request when it has ended."""
