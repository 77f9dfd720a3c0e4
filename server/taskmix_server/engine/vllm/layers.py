"""The compute seam: each module's own result plus the deltas of the rows that asked for them.

A task's product is computed in the module's dtype; products are scaled and added to the base's
result in float32, and the sum is rounded once. Rows without a task keep vLLM's own result bit for
bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from taskmix_server.engine.vllm.deltas import SiteDelta
from taskmix_server.engine.vllm.sites import Site, SiteKind
from taskmix_server.engine.vllm.steps import IDLE, RowPlan, Step, TaskUse


class CurrentStep:
    """The step being run; written before each forward pass, read by every wrapped layer."""

    def __init__(self) -> None:
        self.step: Step = IDLE
        self._has_sampled = False

    def begin(self, step: Step) -> None:
        """The next forward pass runs this step."""
        self.step = step
        self._has_sampled = False

    def plan_for_head(self) -> RowPlan:
        """The plan of the head's next call.

        Its first call in a step takes the rows to sample. Further calls compute log-probabilities
        of prompts, whose rows belong to no plan: the edges admit those requests only under mixes
        that leave the head alone.
        """
        plan = IDLE.samples if self._has_sampled else self.step.samples
        self._has_sampled = True
        return plan


class MixedMethod:
    """A layer's quantisation method with deltas added to what it computes."""

    def __init__(self, inner: Any, site: Site, current: CurrentStep) -> None:
        self._inner = inner
        self._site_name = site.name
        self._is_head = site.kind is SiteKind.HEAD
        self._current = current

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Linear and head: x [rows, inputs] -> [rows, outputs]."""
        out: Tensor = self._inner.apply(layer, x, bias)
        plan = self._current.plan_for_head() if self._is_head else self._current.step.tokens
        uses = uses_of(self._site_name, plan)
        if not uses:
            return out
        assert not self._is_head or x.shape[0] == plan.num_rows, "head rows are not the samples"
        total = out.float()
        for use, delta in uses:
            add_outputs(total, x, use, delta)
        return total.to(out.dtype)

    def embedding(self, layer: nn.Module, input_: Tensor) -> Tensor:
        """Embedding: token ids [rows] -> [rows, hidden]."""
        out: Tensor = self._inner.embedding(layer, input_)
        uses = uses_of(self._site_name, self._current.step.tokens)
        if not uses:
            return out
        total = out.float()
        for use, delta in uses:
            add_embedding(total, input_, use, delta)
        return total.to(out.dtype)


def wrap(site: Site, current: CurrentStep) -> None:
    """Put a site's deltas into its module."""
    if site.kind is SiteKind.NORM:
        site.module.forward = mixed_norm(site, current)
        return
    module: Any = site.module
    module.quant_method = MixedMethod(module.quant_method, site, current)
    if site.kind is SiteKind.LINEAR:
        module.requires_unquantized_input = True  # no fused path may hand over int8 inputs


def uses_of(site_name: str, plan: RowPlan) -> list[tuple[TaskUse, SiteDelta]]:
    """The tasks of a plan that change this site."""
    return [(use, use.task.deltas[site_name]) for use in plan.uses if site_name in use.task.deltas]


def add_outputs(total: Tensor, x: Tensor, use: TaskUse, delta: SiteDelta) -> None:
    """total[rows] += coefficient * (x[rows] @ weight.T + bias), segment by segment.

    total: float32 [batch rows, outputs], changed in place. x: [batch rows, inputs].
    """
    selected = select_rows(x, use.rows)
    for weight in delta.weights:
        product = weight.product(selected)
        sizes = [segment.size for segment in weight.segments]
        for segment, part in zip(weight.segments, product.split(sizes, dim=1), strict=True):
            part.mul_(use.coefficients[segment.column][:, None])
            add_rows(total.narrow(1, segment.start, segment.size), part, use.rows)
    for segment, bias in delta.vectors:
        scaled = use.coefficients[segment.column][:, None] * bias
        add_rows(total.narrow(1, segment.start, segment.size), scaled, use.rows)


def add_embedding(total: Tensor, token_ids: Tensor, use: TaskUse, delta: SiteDelta) -> None:
    """total[rows] += coefficient * weight[token_ids[rows]]; total: float32 [rows, hidden]."""
    (weight,) = delta.weights
    coefficients = use.coefficients[weight.segments[0].column]
    gathered = weight.lookup(select_rows(token_ids, use.rows))
    add_rows(total, gathered * coefficients[:, None], use.rows)


def mixed_norm(site: Site, current: CurrentStep) -> Callable[..., Any]:
    """RMSNorm whose weight is w + sum(c * dw) for each row that uses a task.

    The normalised input is recomputed in float32 and never divided out of the base's result,
    where a zero weight would have lost it.
    """
    norm: Any = site.module
    inner = norm.forward

    def forward(x: Tensor, residual: Tensor | None = None) -> Any:
        plan = current.step.tokens
        uses = uses_of(site.name, plan)
        if not uses:
            return inner(x, residual)
        grouped = (plan.num_rows, -1, norm.weight.shape[0])  # query and key norms have heads
        summed = (x if residual is None else x + residual).reshape(grouped)
        normalized = normalize(select_rows(summed, plan.rows), norm.variance_epsilon)
        result = inner(x, residual)  # may write into x and residual
        weights = norm.weight.float().repeat(plan.num_rows, 1)
        for use, delta in uses:
            ((segment, vector),) = delta.vectors
            add_rows(weights, use.coefficients[segment.column][:, None] * vector, use.rows)
        mixed = normalized * select_rows(weights, plan.rows)[:, None, :]
        out = (result if residual is None else result[0]).view(grouped)
        put_rows(out, mixed.to(out.dtype), plan.rows)
        return result

    return forward


def normalize(x: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) over the last axis, as a new float32 tensor."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)


def select_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """x[rows]; all of x where rows is None."""
    return x if rows is None else x.index_select(0, rows)


def add_rows(total: Tensor, part: Tensor, rows: Tensor | None) -> None:
    """total[rows] += part; every row where rows is None."""
    if rows is None:
        total += part
    else:
        total.index_add_(0, rows, part)


def put_rows(out: Tensor, part: Tensor, rows: Tensor | None) -> None:
    """out[rows] = part; every row where rows is None."""
    if rows is None:
        out.copy_(part)
    else:
        out.index_copy_(0, rows, part)
