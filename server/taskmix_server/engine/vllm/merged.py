"""Merged weights for a mix that has whole batches to itself.

Adding deltas costs time at every step, merging costs it once. As long as nobody knows how long a
mix will stay alone, the rule that never costs more than twice the best choice is to merge when the
time that adding took has reached what merging takes (the ski-rental problem). A mix whose weights
had to make room for another's pays for them anew.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.kernels.products import add_weights
from taskmix_server.engine.vllm import compat
from taskmix_server.engine.vllm.cache import DeltaCache
from taskmix_server.engine.vllm.costs import Costs
from taskmix_server.engine.vllm.sites import Site, SiteKind
from taskmix_server.engine.vllm.slots import site_parts
from taskmix_server.engine.vllm.steps import ResidentVariant, RowPlan

logger = logging.getLogger(__name__)

PATHS = ("base", "merged", "added")
"""What a step runs: the base alone, merged weights, or the base with deltas added."""

MAX_STALL_S = 0.02
"""Merging stops for this step after so long, and goes on in the next one."""


@dataclass(frozen=True, slots=True, eq=False)
class MergedSite:
    """A module with a variant's weights, ready for vLLM's own method.

    change: float32, what the variant adds to the bias, or None.
    """

    module: nn.Module
    change: Tensor | None
    nbytes: int

    def bias(self, base: Tensor | None) -> Tensor | None:
        """The variant's bias."""
        if self.change is None:
            return base
        return self.change if base is None else (base.float() + self.change).to(base.dtype)


@dataclass(slots=True, eq=False)
class Account:
    """What a variant has cost so far, and what merging it takes.

    sites: those that it changes. num_bytes, num_weights: of all their merged weights.
    spent_s: what adding its deltas to whole batches has taken since it was merged last.
    """

    sites: tuple[Site, ...]
    num_bytes: int
    num_weights: int
    spent_s: float = 0.0


@dataclass(slots=True, eq=False)
class MergedWeights:
    """Decides which variants are merged, and holds what was made within the cache's budget."""

    sites: tuple[Site, ...]
    base: Checkpoint
    dtype: torch.dtype
    cache: DeltaCache
    costs: Costs
    num_merges: int = 0
    _accounts: dict[ResidentVariant, Account] = field(default_factory=dict)

    def find(self, variant: ResidentVariant | None, site: Site) -> MergedSite | None:
        """A variant's weights at a site, if they were made and are still here."""
        if variant is None:
            return None
        found = self.cache.find((variant, site.name))
        assert found is None or isinstance(found, MergedSite)
        return found

    def begin(self, plan: RowPlan | None, *, may_merge: bool = True) -> str:
        """Before a step: merge what has come to pay, if one variant has all rows.

        may_merge: not for requests that nobody waits for. Returns which of `PATHS` the step takes.
        """
        if plan is None:
            return "base"
        if plan.sole is None:
            return "added"
        account = self._account(plan.sole)
        missing = [site for site in account.sites if (plan.sole, site.name) not in self.cache]
        if account.sites and not missing:
            return "merged"
        if may_merge and 0 < account.num_bytes <= self.cache.max_bytes:
            num_tasks = len(plan.sole.tasks)
            account.spent_s += self.costs.adding_s(account.num_weights, num_tasks, plan.num_rows)
            if account.spent_s >= self.costs.merging_s(account.num_weights, num_tasks):
                self._merge(plan.sole, account, missing)
        return "added"

    def forget(self, variant: ResidentVariant) -> None:
        """Let go of a variant's weights."""
        account = self._accounts.pop(variant, None)
        if account is not None:
            self.cache.drop((variant, site.name) for site in account.sites)

    def _account(self, variant: ResidentVariant) -> Account:
        if variant not in self._accounts:
            sites = tuple(site for site in self.sites if is_changed(variant, site))
            num_weights = sum(site.num_outputs * inputs_of(site) for site in sites)
            num_bytes = sum(self._bytes(site) for site in sites)
            self._accounts[variant] = Account(sites, num_bytes, num_weights)
        return self._accounts[variant]

    def _merge(self, variant: ResidentVariant, account: Account, missing: Sequence[Site]) -> None:
        started_s = time.perf_counter()
        for done, site in enumerate(missing, 1):
            self.cache.put((variant, site.name), self._merged(variant, site))
            if time.perf_counter() - started_s > MAX_STALL_S and done < len(missing):
                return
        account.spent_s = 0.0
        self.num_merges += 1
        logger.debug("merged a mix of %d tasks that has batches to itself", len(variant.tasks))

    def _merged(self, variant: ResidentVariant, site: Site) -> MergedSite:
        weight = merged_weight(self.base, variant, site).to(self.dtype)
        weight = functional.pad(weight, (0, 0, 0, padded_outputs(site) - len(weight)))
        module = nn.Module()
        module.weight = nn.Parameter(weight, requires_grad=False)
        method: Any = site.module.quant_method
        method.process_weights_after_loading(module)
        return MergedSite(module, bias_change(variant, site), self._bytes(site))

    def _bytes(self, site: Site) -> int:
        size = padded_outputs(site) * inputs_of(site) * self.dtype.itemsize
        return 2 * size if site.kind is SiteKind.HEAD else size  # vLLM keeps a head's plain weight


def mergeable(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites whose weights vLLM multiplies as they are."""
    return tuple(
        site
        for site in sites
        if site.kind in (SiteKind.LINEAR, SiteKind.HEAD)
        and isinstance(site.module.quant_method, compat.UNQUANTIZED)
    )


def is_changed(variant: ResidentVariant, site: Site) -> bool:
    """Whether a variant adds anything to a site."""
    return any(site.name in task.deltas for task, _ in variant.tasks)


def merged_weight(base: Checkpoint, variant: ResidentVariant, site: Site) -> Tensor:
    """The base's weight plus the variant's deltas, float32 [outputs, inputs]."""
    total = torch.cat([base.read(f"{part.name}.weight").float() for part in site.parts])
    for task, coefficients in variant.tasks:
        parts = site_parts((task,), site)
        if parts.packed is not None:
            add_weights(total, parts.packed, coefficients)
        if site.name not in task.deltas:
            continue
        for weight in task.deltas[site.name].weights:
            for segment, delta in weight.segmented():
                target = total.narrow(0, segment.start, segment.size)
                target.add_(delta, alpha=float(coefficients[segment.column]))
    return total


def bias_change(variant: ResidentVariant, site: Site) -> Tensor | None:
    """What a variant adds to a site's bias, float32 [outputs], or None."""
    vectors = [
        (segment, vector, coefficients)
        for task, coefficients in variant.tasks
        if site.name in task.deltas
        for segment, vector in task.deltas[site.name].vectors
    ]
    if not vectors:
        return None
    total = torch.zeros(padded_outputs(site))
    for segment, vector, coefficients in vectors:
        target = total.narrow(0, segment.start, segment.size)
        target.add_(vector, alpha=float(coefficients[segment.column]))
    return total


def inputs_of(site: Site) -> int:
    """Inputs of a linear or a head."""
    module: Any = site.module
    return int(module.embedding_dim if site.kind is SiteKind.HEAD else module.input_size)


def padded_outputs(site: Site) -> int:
    """Outputs of a linear, or of a head with its vocabulary's padding."""
    module: Any = site.module
    return int(module.num_embeddings_padded) if site.kind is SiteKind.HEAD else site.num_outputs
