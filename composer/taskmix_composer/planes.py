"""Planes made of planes: what at least so many of them keep."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.bank.directory import write_locked
from taskmix_composer.bank.records import Derivation, PlaneRecord
from taskmix_composer.bank.writer import ContentWriter, publish
from taskmix_composer.errors import InvalidMethodError, TaskExistsError
from taskmix_composer.mix import check_name
from taskmix_composer.quant import masked
from taskmix_composer.tensorfile import DTYPES


def combine_planes(path: Path, masks: Sequence[str], at_least: int, name: str) -> Bank:
    """Publish the plane `name`, which keeps the weights that at least so many of `masks` keep.

    masks: planes of the bank, `!` before one for its complement, all elected for one set of
    fine-tunes, for which the new plane holds too. 1 gives their union, as many as there are their
    intersection.
    """
    check_name(name)
    if len(set(masks)) != len(masks) or not masks:
        raise InvalidMethodError("name the planes to combine, each once")
    if not 1 <= at_least <= len(masks):
        raise InvalidMethodError(
            f"at least {at_least} of {len(masks)} planes: give a number from 1 to {len(masks)}"
        )
    with write_locked(path):
        bank = Bank.open(path)
        if name in bank.planes or name in bank.entries:
            raise TaskExistsError(f"{path} has {name!r} already; choose another name")
        derivation = _derivation(bank, masks, at_least)
        record = _write(bank, masks, at_least, name, derivation)
        publish(path, replace(bank.manifest, planes={**bank.planes, name: record}))
    return Bank.open(path)


def _derivation(bank: Bank, masks: Sequence[str], at_least: int) -> Derivation:
    origins = {mask: bank.plane(_plane(mask)).derivation for mask in masks}
    first = origins[masks[0]]
    for mask, origin in origins.items():
        if origin.bound != first.bound:
            raise InvalidMethodError(
                f"plane {_plane(masks[0])!r} was elected for {_listed(first)} and "
                f"{_plane(mask)!r} for {_listed(origin)}; combine planes of one set"
            )
    params: dict[str, int | float | str] = {"k": at_least, "planes": ",".join(masks)}
    is_from_bank = any(origin.is_from_bank for origin in origins.values())
    return Derivation("at-least", params, first.bound, is_from_bank)


def _listed(derivation: Derivation) -> str:
    """The fine-tunes of a set, told from others of the same names."""
    return ", ".join(f"{task} ({digest[:8]})" for task, digest in sorted(derivation.bound.items()))


def _write(
    bank: Bank, masks: Sequence[str], at_least: int, name: str, derivation: Derivation
) -> PlaneRecord:
    num_ones = num_weights = 0
    with ContentWriter(bank.path, name) as writer:
        for tensor, record in sorted(bank.base.tensors.items()):
            if not DTYPES[record.dtype].is_floating_point:
                continue
            num_weights += record.num_parameters
            counts = torch.zeros(record.shape, dtype=torch.int16)
            for mask in masks:
                counts += _kept(bank, mask, tensor, record.shape)
            agreed = counts >= at_least
            if agreed.any():
                writer.add(tensor, masked.encode_plane(agreed))
                num_ones += int(agreed.sum())
        return PlaneRecord(writer.finish(), derivation, num_ones / num_weights)


def _kept(bank: Bank, mask: str, tensor: str, shape: tuple[int, ...]) -> Tensor:
    """bool, of a tensor's shape."""
    plane = bank.read_plane(_plane(mask), tensor)
    kept = torch.zeros(shape, dtype=torch.bool) if plane is None else masked.unpacked_mask(plane)
    return ~kept if mask.startswith("!") else kept


def _plane(mask: str) -> str:
    return mask.removeprefix("!")
