"""What fusion-bench gives, whose functions come from the papers' own code."""

from types import SimpleNamespace

import torch
from fusion_bench.method.dare.utils import param_random_drop_
from fusion_bench.method.emr_merging.utils import emr_merge
from fusion_bench.method.isotropic_merging.iso_utils import iso_c as fusion_iso_c
from fusion_bench.method.magmax.magmax import _magmax_select
from fusion_bench.method.tall_mask import utils as tall_mask
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import (
    compute_and_sum_svd_mem_reduction,
)
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging, ties_merging_split
from torch import Tensor

from taskmix_composer.merge.dare import generator
from tests.oracle.composer.references.vectors import (
    Deltas,
    flat,
    masked,
    merged,
    state_dicts,
    tasks,
    unflat,
)


def ties(deltas: Deltas, *, density: float, merge_func: str, scale: float) -> Deltas:
    total = ties_merging(flat(deltas), reset_thresh=100 * density, merge_func=merge_func)
    selected, _ = ties_merging_split(flat(deltas), reset_thresh=100 * density, merge_func="sum")
    return unflat(scale * total, deltas, "delta") | unflat(selected != 0, deltas, "masks")


def dare(deltas: Deltas, *, density: float, scale: float, seed: int) -> Deltas:
    def dropped(name: str, delta: Tensor) -> list[Tensor]:
        parts = [part.clone() for part in delta]
        for task, part in zip(tasks(deltas), parts, strict=True):
            torch.manual_seed(generator(seed, task, name).initial_seed())
            param_random_drop_(part, 1 - density, rescale=True)
        return parts

    return merged(deltas, lambda n, d: scale * sum(dropped(n, d))) | masked(deltas, dropped)


def consensus(
    deltas: Deltas, *, mask_lambda: float, least: int, scale: float, density: float | None = None
) -> Deltas:
    """Consensus over the sum of the vectors or, given a density, over what TIES makes of them."""
    rows = flat(deltas)
    selected, total = rows, rows.sum(dim=0)
    if density is not None:
        selected, total = ties_merging_split(rows, reset_thresh=100 * density, merge_func="sum")
    base = torch.zeros_like(rows[0])
    masks = tall_mask.generate_task_masks(rows, rows, base, total, mask_lambda)
    by_task = {number: {"all": mask.float()} for number, mask in enumerate(masks)}
    tall_mask.load_tall_mask = lambda *_: by_task
    settings = SimpleNamespace()
    plane = tall_mask.construct_consensus_mask({"all": total}, least, settings)
    return unflat(scale * plane * total, deltas, "delta") | unflat(
        (selected * plane) != 0, deltas, "masks"
    )


def tall(deltas: Deltas, *, mask_lambda: float) -> Deltas:
    rows = flat(deltas)
    base = torch.zeros_like(rows[0])
    masks = tall_mask.generate_task_masks(rows, rows, base, None, mask_lambda)
    return unflat(masks, deltas, "masks")


def emr(deltas: Deltas) -> Deltas:
    unified, masks, _ = emr_merge(state_dicts(deltas))
    agreeing = {f"agreement/{name}": torch.stack(parts) for name, parts in masks.items()}
    return {f"delta/{name}": delta for name, delta in unified.items()} | agreeing


def magmax(deltas: Deltas, *, scale: float) -> Deltas:
    return scaled(_magmax_select(state_dicts(deltas)), scale)


def tsv_m(deltas: Deltas, *, scale: float) -> Deltas:
    total = compute_and_sum_svd_mem_reduction(state_dicts(deltas), accelerator="cpu")
    return scaled(total, scale)


def iso_c(deltas: Deltas, *, scale: float) -> Deltas:
    return scaled(fusion_iso_c(state_dicts(deltas), accelerator="cpu"), scale)


def scaled(total: Deltas, scale: float) -> Deltas:
    return {f"delta/{name}": (scale * delta).contiguous() for name, delta in total.items()}
