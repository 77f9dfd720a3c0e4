"""Task vectors to merge: random ones, and ones of equal magnitudes, zeros and cancellations."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Deltas = dict[str, Tensor]


def make_vectors() -> dict[str, Deltas]:
    """Sets of task vectors by name: float32 [T, *shape] by tensor."""
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 1e-3 * torch.randn(shape, generator=source)

    def dyadic(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=source) * 2.0**-10

    shapes = {
        "bias": (9,),
        "conv": (3, 2, 4),
        "matrix": (12, 20),
        "scalar": (),
        "tall": (24, 8),
        "vector": (31,),
    }
    plain = {name: normal(3, *shape) for name, shape in shapes.items()}
    # Few distinct values: equal magnitudes, sums that cancel, zeros of both signs.
    tied = {name: dyadic(4, *shape) for name, shape in shapes.items()}
    tied["matrix"][1] = 0
    tied["vector"][2] = 0
    tied["vector"][0, ::3] *= -0.0
    tied["bias"][:] = tied["bias"][:1]
    many = {name: normal(8, *shape) for name, shape in shapes.items()}
    many["matrix"][:, 3] = 0
    alone = {name: normal(1, *shape) for name, shape in shapes.items()}
    return {"alone": alone, "many": many, "plain": plain, "tied": tied}


def tasks(deltas: Deltas) -> list[str]:
    """The names under which the draws of DARE are made."""
    return [f"task{number}" for number in range(len(deltas["bias"]))]


def flat(deltas: Deltas) -> Tensor:
    """[T, all elements], tensors sorted by name as the original TIES has them."""
    return torch.cat(
        [deltas[name].reshape(len(deltas[name]), -1) for name in sorted(deltas)], dim=1
    )


def unflat(rows: Tensor, deltas: Deltas, kind: str) -> Deltas:
    """Cut [..., all elements] into tensors, under names of one kind."""
    sizes = [deltas[name][0].numel() for name in sorted(deltas)]
    pieces = zip(sorted(deltas), rows.split(sizes, dim=-1), strict=True)
    return {
        f"{kind}/{name}": piece.reshape(piece.shape[:-1] + deltas[name].shape[1:]).contiguous()
        for name, piece in pieces
    }


def state_dicts(deltas: Deltas) -> list[Deltas]:
    """Each task's vector as a state dict."""
    return [{name: d[task] for name, d in deltas.items()} for task in range(len(deltas["bias"]))]


def merged(deltas: Deltas, merge: Callable[[str, Tensor], Tensor]) -> Deltas:
    """Merge tensor by tensor."""
    return {f"delta/{name}": merge(name, delta).contiguous() for name, delta in deltas.items()}


def masked(deltas: Deltas, mask: Callable[[str, Tensor], Iterable[Tensor]]) -> Deltas:
    """Masks tensor by tensor."""
    return {
        f"masks/{name}": torch.stack([part.bool() for part in mask(name, delta)])
        for name, delta in deltas.items()
    }
