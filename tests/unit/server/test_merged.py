"""When a mix is merged: what it has paid, what it was driven out by, and who never pays."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskmix_server.engine.vllm import compat
from taskmix_server.engine.vllm.cache import DeltaCache
from taskmix_server.engine.vllm.carriers import as_shadow, is_shadow
from taskmix_server.engine.vllm.costs import Costs
from taskmix_server.engine.vllm.deltas import MaskedTask, SiteDelta
from taskmix_server.engine.vllm.merged import MergedWeights
from taskmix_server.engine.vllm.sites import Part, Site, SiteKind
from taskmix_server.engine.vllm.slots import Slots
from taskmix_server.engine.vllm.steps import Planner, ResidentVariant, RowPlan

SIZE = 4
NUM_BYTES = SIZE * SIZE * 4
NUM_STEPS = 3
"""After so many steps of one row, adding has cost what merging does."""

COSTS = Costs(read=0.0, row=1.0, decode=float(NUM_STEPS), install=0.0)


class Base:
    """A checkpoint of zeros."""

    def read(self, name: str) -> Tensor:
        return torch.zeros(SIZE, SIZE)


def linear() -> Site:
    module: Any = nn.Module()
    module.input_size = SIZE
    module.quant_method = SimpleNamespace(process_weights_after_loading=lambda made: None)
    return Site("linear", SiteKind.LINEAR, (Part("linear", 0, SIZE),), module)


def merged_weights(max_bytes: int) -> MergedWeights:
    base: Any = Base()
    return MergedWeights((linear(),), base, torch.float32, DeltaCache(max_bytes), COSTS)


def alone(digest: str) -> RowPlan:
    """A step of one row, under a mix of one task."""
    task = MaskedTask(digest, (), {"linear": SiteDelta((), ())}, 0)
    planner = Planner(1, torch.device("cpu"), Slots((task,)))
    plan = planner.rows(np.asarray([1]), {1: ResidentVariant(((task, torch.ones(1)),))})
    assert plan is not None
    return plan


def paths(merged: MergedWeights, plan: RowPlan, num_steps: int, **options: bool) -> list[str]:
    return [merged.begin(plan, **options) for _ in range(num_steps)]


PAYING = ["added"] * NUM_STEPS


def test_a_mix_is_merged_when_it_has_paid_for_it() -> None:
    merged, first, second = merged_weights(2 * NUM_BYTES), alone("a"), alone("b")
    for plan in (first, second, first, second):
        assert paths(merged, plan, NUM_STEPS + 1) in ([*PAYING, "merged"], ["merged"] * 4)
    assert merged.num_merges == 2


def test_a_mix_that_was_driven_out_pays_anew() -> None:
    """Mixes that do not fit beside each other cost twice what adding does, at most."""
    merged, first, second = merged_weights(NUM_BYTES), alone("a"), alone("b")
    for num_merged, plan in enumerate((first, second, first, second)):
        assert paths(merged, plan, NUM_STEPS - 1) == PAYING[1:]
        assert merged.num_merges == num_merged
        assert paths(merged, plan, 2) == ["added", "merged"]


def test_who_is_not_waited_for_merges_nothing() -> None:
    merged, plan = merged_weights(NUM_BYTES), alone("a")
    assert paths(merged, plan, 3 * NUM_STEPS, may_merge=False) == 3 * PAYING
    assert (merged.num_merges, merged.cache.num_bytes) == (0, 0)
    assert paths(merged, plan, NUM_STEPS + 1) == [*PAYING, "merged"], "nor does it pay for others"
    assert paths(merged, plan, 1, may_merge=False) == ["merged"], "what is there is used"


def test_a_worker_knows_whom_nobody_waits_for() -> None:
    carrier = compat.LoRARequest("mix:d:7", 7, "mix:d:7")
    shadow = as_shadow(carrier)
    assert (is_shadow(carrier), is_shadow(shadow)) == (False, True)
    assert (shadow.lora_int_id, shadow.lora_path) == (7, "mix:d:7"), "the row of the same mix"
