"""Planes put into a bank as they are given."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from taskmix_composer.bank import Bank
from taskmix_composer.bank.records import Derivation, PlaneRecord
from taskmix_composer.bank.writer import publish, write_content
from taskmix_composer.quant.masked import encode_plane

Masks = Mapping[str, torch.Tensor]


def random_masks(bank: Bank, seed: int, without: str = "") -> dict[str, torch.Tensor]:
    """A mask of half of each tensor, and of nothing where the name contains `without`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(record.shape, generator=generator) < 0.5
        for name, record in bank.base.tensors.items()
        if not without or without not in name
    }


def add_planes(path: Path, tasks: tuple[str, ...], planes: Mapping[str, Masks]) -> Bank:
    """Publish planes as if one election among `tasks` had given them."""
    bank = Bank.open(path)
    bound = {task: bank.entry(task).provenance.digest for task in tasks}
    elected = Derivation("test", {"planes": "+".join(sorted(planes))}, bound)
    records = dict(bank.planes)
    for name, masks in planes.items():
        deltas = ((tensor, encode_plane(mask)) for tensor, mask in masks.items())
        records[name] = PlaneRecord(write_content(path, name, deltas), elected, density=0.5)
    publish(path, replace(bank.manifest, planes=records))
    return Bank.open(path)
