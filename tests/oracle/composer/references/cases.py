"""Which methods are compared, on which vectors and with which parameters."""

from collections.abc import Iterable

from tests.oracle.composer.references import by_fusion_bench, by_mergekit
from tests.oracle.composer.references.vectors import Deltas, make_vectors

# A coefficient per task of each set; one is negative, as a user may subtract.
WEIGHTS = {
    "alone": (0.7,),
    "many": (0.3, 0.5, 1.0, -0.4, 0.2, 0.8, 0.1, 0.6),
    "plain": (0.3, 0.5, -0.4),
    "tied": (0.5, 1.0, 0.5, -0.5),
}

# Metadata and tensors of each file.
Files = dict[str, tuple[dict[str, str], Deltas]]


def make_files() -> Files:
    """Every file by its name.

    `vectors` holds float32 [T, *shape] under SET/TENSOR. A method's file holds its cases by number:
    as metadata the set and the parameters as the command line spells them, N/delta/TENSOR (float32,
    the merged delta) and, where it selects, N/masks/TENSOR (bool [T, *shape], what takes part).
    The masks of `tall` and N/agreement/TENSOR of `emr` are those with which a task is taken back.
    """
    vectors = make_vectors()
    inputs = {f"{name}/{tensor}": d for name, ds in vectors.items() for tensor, d in ds.items()}
    files: Files = {"vectors": ({}, inputs)}
    for name, deltas in vectors.items():
        for method, params, tensors in cases(deltas, WEIGHTS[name]):
            metadata, contents = files.setdefault(method, ({}, {}))
            number = str(len(metadata))
            metadata[number] = f"{name} {params}"
            contents.update({f"{number}/{key}": tensor for key, tensor in tensors.items()})
    return files


def cases(deltas: Deltas, weights: tuple[float, ...]) -> Iterable[tuple[str, str, Deltas]]:
    """Method, parameters, and what the reference gives."""
    yield from original_cases(deltas)
    yield from mergekit_cases(deltas, weights)
    yield from consensus_cases(deltas)


def original_cases(deltas: Deltas) -> Iterable[tuple[str, str, Deltas]]:
    for func, density, scale in [("mean", 0.2, 1.0), ("sum", 0.2, 0.3), ("mean", 0.65, 0.7)]:
        params = f"density={density} merge_func={func} lambda={scale}"
        tensors = by_fusion_bench.ties(deltas, density=density, merge_func=func, scale=scale)
        yield "ties", params, tensors
    params = "density=0.3 lambda=0.6 seed=5"
    yield "dare", params, by_fusion_bench.dare(deltas, density=0.3, scale=0.6, seed=5)
    yield "emr", "", by_fusion_bench.emr(deltas)
    yield "magmax", "lambda=0.5", by_fusion_bench.magmax(deltas, scale=0.5)
    yield "tsv-m", "alpha=0.9", by_fusion_bench.tsv_m(deltas, scale=0.9)
    yield "iso-c", "scaling_factor=1.2", by_fusion_bench.iso_c(deltas, scale=1.2)


def mergekit_cases(deltas: Deltas, weights: tuple[float, ...]) -> Iterable[tuple[str, str, Deltas]]:
    listed = ",".join(map(str, weights))
    for density, normalize, scale in [(0.2, True, 1.0), (0.5, False, 0.7), (0.01, True, 1.0)]:
        more = {"density": density, "normalize": normalize, "lambda": scale}
        tensors = by_mergekit.ties(deltas, weight=weights, **more)
        yield "ties-mergekit", f"weight={listed} {spelled(more)}", tensors
    for density, gamma, normalize in [(0.6, 0.1, False), (0.3, 0.0, True), (0.95, 0.2, False)]:
        more = {"density": density, "gamma": gamma, "normalize": normalize}
        tensors = by_mergekit.breadcrumbs(deltas, weight=weights, **more)
        yield "breadcrumbs", f"weight={listed} {spelled(more)}", tensors
    more = {"density": 0.4, "lambda": 0.8, "seed": 3}
    tensors = by_mergekit.dare(deltas, weight=weights, **more)
    yield "dare-mergekit", f"weight={listed} {spelled(more)}", tensors


def consensus_cases(deltas: Deltas) -> Iterable[tuple[str, str, Deltas]]:
    for mask_lambda, least, scale in [(1.0, 2, 1.0), (0.4, 1, 0.3), (0.6, 0, 0.3)]:
        params = f"prun_thre_k={least} tall_mask_lambda={mask_lambda} lambda={scale}"
        common = {"mask_lambda": mask_lambda, "least": least, "scale": scale}
        yield "consensus-ta", params, by_fusion_bench.consensus(deltas, **common)
        tensors = by_fusion_bench.consensus(deltas, density=0.2, **common)
        yield "consensus-ties", f"density=0.2 {params}", tensors
        yield "tall", str(mask_lambda), by_fusion_bench.tall(deltas, mask_lambda=mask_lambda)


def spelled(params: dict[str, float | bool]) -> str:
    return " ".join(f"{name}={str(value).lower()}" for name, value in params.items())
