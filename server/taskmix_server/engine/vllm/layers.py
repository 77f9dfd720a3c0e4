"""The compute seam: each module's own result plus the deltas of the rows that asked for them.

Products are scaled and added to the base's result in float32, and the sum is rounded once (on a
GPU, once more where some of a module's deltas are in tables of the device and others are not). Rows
without a task keep vLLM's own result bit for bit. Where one mix has all rows of a batch, its
merged weights may take the place of both.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from taskmix_composer.kernels.norms import RowWeights, scale_norms
from taskmix_composer.kernels.products import add_lookups, add_products
from taskmix_server.engine.vllm.deltas import SiteDelta
from taskmix_server.engine.vllm.merged import MergedWeights
from taskmix_server.engine.vllm.sites import Site, SiteKind
from taskmix_server.engine.vllm.steps import IDLE, RowPlan, Step, TaskUse

Scale = Callable[[Tensor, Tensor, RowWeights, float, Tensor | None], None]
"""`scale_norms` of `kernels.norms`, or what does the same."""


class CurrentStep:
    """The step being run; written before each forward pass, read by every wrapped layer."""

    def __init__(self) -> None:
        self.step: Step = IDLE
        self._has_sampled = False

    def begin(self, step: Step) -> None:
        """The next forward pass runs this step."""
        self.step = step
        self._has_sampled = False

    def plan_for_head(self) -> RowPlan | None:
        """The plan of the head's next call.

        Its first call in a step takes the rows to sample. Further calls compute log-probabilities
        of prompts, whose rows belong to no plan: the edges admit those requests only under mixes
        that leave the head alone.
        """
        plan = None if self._has_sampled else self.step.samples
        self._has_sampled = True
        return plan


class MixedMethod:
    """A layer's quantisation method with deltas added to what it computes."""

    def __init__(self, inner: Any, site: Site, current: CurrentStep, merged: MergedWeights) -> None:
        self._inner = inner
        self._site = site
        self._is_head = site.kind is SiteKind.HEAD
        self._current = current
        self._merged = merged

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Linear and head: x [rows, inputs] -> [rows, outputs]."""
        plan = self._current.plan_for_head() if self._is_head else self._current.step.tokens
        if plan is None:
            return self._inner.apply(layer, x, bias)  # type: ignore[no-any-return]
        assert x.shape[0] == plan.num_rows, "the rows are not those of the plan"
        merged = self._merged.find(plan.sole, self._site)
        if merged is not None:
            return self._inner.apply(merged.module, x, merged.bias(bias))  # type: ignore[no-any-return]
        out: Tensor = self._inner.apply(layer, x, bias)
        return add_outputs(out, x, plan, self._site)

    def embedding(self, layer: nn.Module, input_: Tensor) -> Tensor:
        """Embedding: token ids [rows] -> [rows, hidden]."""
        out: Tensor = self._inner.embedding(layer, input_)
        plan = self._current.step.tokens
        return out if plan is None else add_embedding(out, input_, plan, self._site)


def wrap(site: Site, current: CurrentStep, merged: MergedWeights, *, is_native: bool) -> None:
    """Put a site's deltas into its module, with the compiled kernels if `is_native`."""
    if site.kind is SiteKind.NORM:
        scale = scale_norms if is_native else torch_scale_norms
        site.module.forward = mixed_norm(site, current, scale)
        return
    module: Any = site.module
    module.quant_method = MixedMethod(module.quant_method, site, current, merged)
    if site.kind is SiteKind.LINEAR:
        module.requires_unquantized_input = True  # no fused path may hand over int8 inputs


def add_outputs(out: Tensor, x: Tensor, plan: RowPlan, site: Site) -> Tensor:
    """out [rows, outputs] with what the plan's tasks add to it; `out` may be written into."""
    parts = plan.slots.parts(site)
    if plan.routed is not None:
        plan.routed.add_products(out, x, parts.tables)
    if not parts.has_others:
        if parts.packed is not None:
            add_products(out, x, parts.packed, plan.pairs)
        return out
    total = out.float()
    if parts.packed is not None:
        add_products(total, x, parts.packed, plan.pairs)
    for use, delta in uses_of(site.name, plan):
        add_task(total, x, use, delta)
    return total.to(out.dtype)


def add_embedding(out: Tensor, token_ids: Tensor, plan: RowPlan, site: Site) -> Tensor:
    """out [rows, hidden] with what the plan's tasks add to it; `out` may be written into."""
    parts = plan.slots.parts(site)
    if plan.routed is not None:
        plan.routed.add_lookups(out, token_ids, parts.tables)
    if not parts.has_others:
        if parts.packed is not None:
            add_lookups(out, token_ids, parts.packed, plan.pairs)
        return out
    total = out.float()
    if parts.packed is not None:
        add_lookups(total, token_ids, parts.packed, plan.pairs)
    for use, delta in uses_of(site.name, plan):
        for weight in delta.weights:
            coefficients = use.coefficients[weight.segments[0].column]
            gathered = weight.lookup(select_rows(token_ids, use.rows))
            add_rows(total, gathered * coefficients[:, None], use.rows)
    return total.to(out.dtype)


def uses_of(site_name: str, plan: RowPlan) -> list[tuple[TaskUse, SiteDelta]]:
    """The tasks of a plan that change this site."""
    return [(use, use.task.deltas[site_name]) for use in plan.uses if site_name in use.task.deltas]


def add_task(total: Tensor, x: Tensor, use: TaskUse, delta: SiteDelta) -> None:
    """total[rows] += coefficient * (x[rows] @ weight.T + bias), segment by segment.

    Of what is not packed. total: float32 [batch rows, outputs], changed in place. x: [batch rows,
    inputs].
    """
    for weight in delta.weights:
        product = weight.product(select_rows(x, use.rows))
        sizes = [segment.size for segment in weight.segments]
        for segment, part in zip(weight.segments, product.split(sizes, dim=1), strict=True):
            part.mul_(use.coefficients[segment.column][:, None])
            add_rows(total.narrow(1, segment.start, segment.size), part, use.rows)
    for segment, bias in delta.vectors:
        scaled = use.coefficients[segment.column][:, None] * bias
        add_rows(total.narrow(1, segment.start, segment.size), scaled, use.rows)


def mixed_norm(site: Site, current: CurrentStep, scale: Scale) -> Callable[..., Any]:
    """RMSNorm whose weight is w + sum(c * dw) for each row that uses a task.

    The normalised input is recomputed in float32 and never divided out of the base's result,
    where a zero weight would have lost it. The base's result is made only where a row needs it.
    """
    norm: Any = site.module
    inner = norm.forward

    def forward(x: Tensor, residual: Tensor | None = None) -> Any:
        plan = current.step.tokens
        if plan is None or (weights := norm_weights(plan, site)) is None:
            return inner(x, residual)
        own = RowWeights(weights, plan.variant_of_row, plan.rows)
        heads = (plan.num_rows, -1, norm.weight.shape[0])  # of query and key norms
        if plan.rows is None:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
            summed = None if residual is None else residual.view(heads)
            scale(out.view(heads), x.reshape(heads), own, norm.variance_epsilon, summed)
            return out if residual is None else (out, residual)
        result = inner(x, residual)
        out, summed = (result, x) if residual is None else result
        scale(out.view(heads), summed.reshape(heads), own, norm.variance_epsilon, None)
        return result

    return forward


def norm_weights(plan: RowPlan, site: Site) -> Tensor | None:
    """What the norm's weight is for each variant, float32 [variants, width]; None for the base's.

    Made once per step.
    """
    if site.name not in plan.norms:
        plan.norms[site.name] = _norm_weights(plan, site)
    return plan.norms[site.name]


def _norm_weights(plan: RowPlan, site: Site) -> Tensor | None:
    changes = [
        (number, *use.task.deltas[site.name].vectors[0])
        for number, use in enumerate(plan.uses)
        if site.name in use.task.deltas
    ]
    if not changes:
        return None
    numbers, segments, vectors = zip(*changes, strict=True)
    coefficients = plan.coefficients[segments[0].column]  # [variants, uses]
    weight: Any = site.module.weight
    return torch.addmm(weight.float(), coefficients[:, numbers], torch.stack(vectors))


def torch_scale_norms(
    out: Tensor, x: Tensor, weights: RowWeights, epsilon: float, residual: Tensor | None
) -> None:
    """As `kernels.norms.scale_norms`, for x [rows, heads, width], on any device."""
    wide = select_rows(x, weights.rows).float()
    if residual is not None:
        wide += select_rows(residual, weights.rows)
        put_rows(residual, wide.to(residual.dtype), weights.rows)
    normalized = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    variants = select_rows(weights.variant_of_row, weights.rows)
    own = weights.by_variant.index_select(0, variants)[:, None, :]
    put_rows(out, normalized.mul_(own).to(out.dtype), weights.rows)


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
