"""Planning a bank: every tensor of every task is measured, then the budget is shared out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from taskmix_composer.budget import Choice, chosen
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.encoding import is_adapter
from taskmix_composer.measure import SHARD_BYTES, Measured, measure_task
from taskmix_composer.plan import Plan
from taskmix_composer.progress import Meter, Progress
from taskmix_composer.taskvector import Source

Effects = Mapping[str, Mapping[str, float]]
"""How much of what a task does each of its tensors does, by task and tensor, in any unit.

Every floating-point tensor of more than one axis that the task changed must be there.
"""
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a plan should make of a task: its shard's bytes, and the share of its effect lost."""

    num_bytes: int
    error: float


def make_plan(
    base: Checkpoint,
    sources: Mapping[str, Source],
    budget_bytes: int,
    effects: Effects | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, dict[str, Forecast]]:
    """Plan shards of `budget_bytes` together at most, and forecast them by task.

    Tasks count the same. A task's tensors count by `effects` or, without it, by the norm of their
    deltas, which comes close to effects that are measured.
    """
    meter = Meter(progress, base.num_parameters * len(sources))
    choices: dict[Key, list[Choice]] = {}
    for task, source in sources.items():
        measured = dict(measure_task(base, source, meter))
        weights = _weights(measured, None if effects is None else effects.get(task))
        for tensor, own in measured.items():
            weight = weights[tensor] / len(sources)
            choices[task, tensor] = [
                replace(choice, error=choice.error * weight) for choice in own.choices
            ]
    taken = chosen(choices, budget_bytes, SHARD_BYTES * len(sources))
    forecasts = {task: _forecast(taken, task, len(sources)) for task in sources}
    schemes = {
        task: {} if is_adapter(source) else _schemes(taken, task)
        for task, source in sources.items()
    }
    plan = Plan(
        schemes=schemes,
        budget_bytes=budget_bytes,
        predicted_bytes=sum(forecast.num_bytes for forecast in forecasts.values()),
        predicted_error=sum(choice.error for choice in taken.values()),
    )
    return plan, forecasts


def _weights(
    measured: Mapping[str, Measured], effects: Mapping[str, float] | None
) -> dict[str, float]:
    """The share that each tensor has in what a task does, as far as it can be lost."""
    weights = {
        tensor: own.norm if effects is None else effects[tensor]
        for tensor, own in measured.items()
        if own.is_lossy
    }
    total = sum(weights.values()) or 1.0
    return {tensor: weights.get(tensor, 0.0) / total for tensor in measured}


def _forecast(taken: Mapping[Key, Choice], task: str, num_tasks: int) -> Forecast:
    own = [choice for (owner, _), choice in taken.items() if owner == task]
    return Forecast(
        SHARD_BYTES + sum(choice.num_bytes for choice in own),
        num_tasks * sum(choice.error for choice in own),
    )


def _schemes(taken: Mapping[Key, Choice], task: str) -> dict[str, Scheme | None]:
    return {tensor: choice.scheme for (owner, tensor), choice in taken.items() if owner == task}
