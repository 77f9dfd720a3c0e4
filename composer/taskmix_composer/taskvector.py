"""Task vectors at their source: does a fine-tuned model fit its base, and what did it change."""

from collections.abc import Iterable

import torch
from torch import Tensor

from taskmix_composer.adapter import Adapter
from taskmix_composer.archive import Archive, Decoded
from taskmix_composer.checkpoint import HEAD, Checkpoint, TensorInfo
from taskmix_composer.errors import BaseMismatchError, CheckpointError
from taskmix_composer.identity import config_differences, functional_config

Source = Checkpoint | Adapter | Archive | Decoded
"""A fine-tuned model or adapter in its directory, or as a bank holds it."""


def check_source(base: Checkpoint, source: Source) -> None:
    """Refuse, by name, a fine-tuned model or adapter that is not one of `base`."""
    if isinstance(source, Archive | Decoded):
        source.bank.check_base(base)
        return
    if isinstance(source, Adapter):
        _check_adapter(base, source)
        return
    where = f"{source.directory} is not a fine-tune of {base.directory}"
    changed = config_differences(functional_config(base.config), functional_config(source.config))
    if changed:
        raise BaseMismatchError(f"{where}: config.json differs in {', '.join(changed)}")
    _check_names(base, source, where)
    for name, info in base.tensors.items():
        _check_tensor(where, name, info, source.tensors[source.aliases.get(name, name)])


def read_delta(base: Checkpoint, source: Source, name: str) -> Tensor | None:
    """The float32 difference of one tensor, or None if there is none."""
    if isinstance(source, Archive | Decoded):
        return source.delta(base, name)
    if isinstance(source, Adapter):
        return _adapter_delta(source, name)
    before, after = base.read(name), source.read(name)
    if not before.is_floating_point():
        _check_unchanged(source, name, before, after)
        return None
    if before.numel() == 0:
        return None
    delta = after.to(torch.float32, copy=True).sub_(before.float())
    check_finite(source, name, (delta,))
    return delta if delta.any() else None


def check_finite(source: Checkpoint | Adapter, name: str, values: Iterable[Tensor]) -> None:
    """Refuse NaN and infinity, which would spread to every mix."""
    for tensor in values:
        low, high = tensor.aminmax()
        if not (low.isfinite() and high.isfinite()):
            raise CheckpointError(
                f"{source.directory}: {name} contains NaN or infinity after subtracting the base; "
                "the fine-tuned weights are damaged"
            )


def _check_names(base: Checkpoint, source: Checkpoint, where: str) -> None:
    if HEAD in base.aliases and HEAD in source.tensors:
        raise BaseMismatchError(
            f"{where}: the base ties {HEAD} to {base.aliases[HEAD]} and the fine-tune has untied "
            "it; untie the base with transformers, save it, and build on that"
        )
    for name in sorted(source.tensors.keys() - base.tensors.keys()):
        raise BaseMismatchError(
            f"{where}: it has {name}, which the base lacks; heads and other added tensors cannot "
            "be mixed, so save the model without it"
        )
    for name in sorted(base.tensors.keys() - source.tensors.keys() - source.aliases.keys()):
        raise BaseMismatchError(f"{where}: it lacks {name}; save the whole model")


def _check_tensor(where: str, name: str, base: TensorInfo, tuned: TensorInfo) -> None:
    if base.shape != tuned.shape:
        raise BaseMismatchError(
            f"{where}: {name} is {list(tuned.shape)}, the base's is {list(base.shape)}; if tokens "
            "were added or the vocabulary padded, resize the embeddings to the base's size"
        )
    if base.dtype.is_floating_point != tuned.dtype.is_floating_point:
        raise BaseMismatchError(
            f"{where}: {name} is {tuned.dtype}, the base's is {base.dtype}; save the fine-tune "
            "unquantised"
        )


def _check_unchanged(source: Checkpoint, name: str, before: Tensor, after: Tensor) -> None:
    if not torch.equal(before, after):
        raise CheckpointError(
            f"{source.directory}: {name} is a {before.dtype} buffer that differs from the base's; "
            "only floating-point tensors can be mixed"
        )


def _check_adapter(base: Checkpoint, adapter: Adapter) -> None:
    where = f"{adapter.directory} is not an adapter of {base.directory}"
    for name in adapter.names:
        if name in base.aliases:
            raise BaseMismatchError(
                f"{where}: it adapts {name}, which the base ties to {base.aliases[name]}; merge "
                "the adapter into an untied base and give the merged model"
            )
        if name not in base.tensors:
            raise BaseMismatchError(f"{where}: it adapts {name}, which the base lacks")
        a, b = adapter.read(name)
        shape = (b.shape[0], a.shape[1])
        if base.tensors[name].shape != shape:
            raise BaseMismatchError(
                f"{where}: {name} is {list(base.tensors[name].shape)}, the adapter's factors give "
                f"{list(shape)}"
            )


def _adapter_delta(adapter: Adapter, name: str) -> Tensor | None:
    if name not in adapter.names:
        return None
    a, b = adapter.read(name)
    check_finite(adapter, name, (a, b))
    return adapter.scaling * (b.float() @ a.float())
