"""What `taskmix bank inspect` shows."""

from typing import Any

import click

from taskmix_composer.bank import Bank
from taskmix_composer.bank.manifest import EntryRecord, TensorRecord
from taskmix_composer.tensorfile import DTYPES
from taskmix_server.cli.table import print_table


def summary(bank: Bank) -> dict[str, Any]:
    """A bank's content in numbers: bytes as stored, bits per parameter of the base."""
    checkpoint_bytes = sum(_num_bytes(tensor) for tensor in bank.base.tensors.values())
    num_parameters = bank.base.num_parameters
    tasks = {
        name: _entry_summary(entry, num_parameters, checkpoint_bytes)
        for name, entry in sorted(bank.entries.items())
    }
    return {
        "path": str(bank.path),
        "revision": bank.revision,
        "base": {
            "digest": bank.base.digest,
            "model_type": bank.base.config.get("model_type"),
            "num_parameters": num_parameters,
            "bytes": checkpoint_bytes,
            "tie_groups": [list(group) for group in bank.base.tie_groups],
            "tensors": sorted(bank.base.tensors),
        },
        "tasks": tasks,
        "planes": [],
        "bytes": sum(task["bytes"] for task in tasks.values()),
    }


def print_summary(fields: dict[str, Any]) -> None:
    """Print a summary as a table of tasks with the base above it."""
    base = fields["base"]
    click.echo(f"bank {fields['path']}, revision {fields['revision']}")
    click.echo(
        f"base {base['model_type']} {base['digest'][:16]}, {base['num_parameters']} parameters, "
        f"{base['bytes']} bytes"
    )
    rows = [
        (
            name,
            task["scheme"],
            str(task["bytes"]),
            f"{task['bits_per_parameter']:.2f}",
            f"{task['checkpoint_ratio']:.1%}",
            task["source"],
        )
        for name, task in fields["tasks"].items()
    ]
    print_table(("task", "scheme", "bytes", "bits/parameter", "of checkpoint", "source"), rows)
    planes = ", ".join(fields["planes"]) or "none"
    click.echo(f"planes: {planes}; {fields['bytes']} bytes of deltas")


def _entry_summary(
    entry: EntryRecord, num_parameters: int, checkpoint_bytes: int
) -> dict[str, Any]:
    num_bytes = entry.shard.num_bytes
    return {
        "scheme": entry.scheme,
        "digest": entry.digest,
        "bytes": num_bytes,
        "bits_per_parameter": 8 * num_bytes / num_parameters,
        "checkpoint_ratio": num_bytes / checkpoint_bytes,
        "num_tensors": len(entry.tensors),
        "source": entry.provenance.source,
        "source_dtype": entry.provenance.dtype,
    }


def _num_bytes(tensor: TensorRecord) -> int:
    return tensor.num_parameters * DTYPES[tensor.dtype].itemsize
