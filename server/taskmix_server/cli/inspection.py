"""What `taskmix bank inspect` shows."""

from typing import Any

import click

from taskmix_composer.bank import Bank
from taskmix_composer.bank.records import Derivation, EntryRecord, PlaneRecord, SharedRecord
from taskmix_server.cli.table import print_table


def summary(bank: Bank) -> dict[str, Any]:
    """A bank's content in numbers.

    `bytes` is what lies on disk, `resident_bytes` what a server holds of it, entropy coding undone
    and before it materialises anything. A task's `bits_per_parameter` of the base has no share of
    the vector that it is coded over, nor its archive.
    """
    checkpoint_bytes = sum(tensor.num_bytes for tensor in bank.base.tensors.values())
    num_parameters = bank.base.num_parameters
    tasks = {
        name: _entry_summary(entry, num_parameters, checkpoint_bytes)
        for name, entry in sorted(bank.entries.items())
    }
    shared = {
        digest[:16]: _shared_summary(record) for digest, record in bank.manifest.shared.items()
    }
    planes = {name: _plane_summary(plane) for name, plane in sorted(bank.planes.items())}
    parts = [*tasks.values(), *shared.values(), *planes.values()]
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
        "shared": shared,
        "planes": planes,
        "bytes": sum(part["bytes"] for part in parts),
        "archive_bytes": sum(task["archive_bytes"] for task in tasks.values()),
        "resident_bytes": sum(part["resident_bytes"] for part in parts),
    }


def print_summary(fields: dict[str, Any]) -> None:
    """Print a summary as tables of tasks, shared vectors and planes with the base above them."""
    base = fields["base"]
    click.echo(f"bank {fields['path']}, revision {fields['revision']}")
    click.echo(
        f"base {base['model_type']} {base['digest'][:16]}, {base['num_parameters']} parameters, "
        f"{base['bytes']} bytes"
    )
    _print_tasks(fields["tasks"])
    for digest, shared in fields["shared"].items():
        click.echo(
            f"shared {digest}: {shared['scheme']} for {', '.join(shared['tasks'])}; "
            f"{shared['bytes']} bytes, {shared['resident_bytes']} resident"
        )
    for name, plane in fields["planes"].items():
        click.echo(
            f"plane {name}: {plane['method']}, density {plane['density']:.4f}, for "
            f"{', '.join(plane['tasks'])}; {plane['bytes']} bytes, "
            f"{plane['resident_bytes']} resident"
        )
    click.echo(
        f"{fields['bytes']} bytes, {fields['resident_bytes']} resident when all are loaded; "
        f"archives {fields['archive_bytes']} bytes"
    )


def _print_tasks(tasks: dict[str, Any]) -> None:
    header = ("task", "scheme", "bytes", "bits/parameter", "of checkpoint", "resident", "archive")
    rows = [
        (
            name,
            task["scheme"],
            str(task["bytes"]),
            f"{task['bits_per_parameter']:.2f}",
            f"{task['checkpoint_ratio']:.1%}",
            str(task["resident_bytes"]),
            str(task["archive_bytes"] or "none"),
            task["source"],
        )
        for name, task in tasks.items()
    ]
    print_table((*header, "source"), rows)


def _entry_summary(
    entry: EntryRecord, num_parameters: int, checkpoint_bytes: int
) -> dict[str, Any]:
    num_bytes = entry.content.shard.num_bytes
    is_derived = isinstance(entry.provenance, Derivation)
    return {
        "scheme": entry.scheme,
        "digest": entry.digest,
        "bytes": num_bytes,
        "bits_per_parameter": 8 * num_bytes / num_parameters,
        "checkpoint_ratio": num_bytes / checkpoint_bytes,
        "resident_bytes": entry.content.resident_bytes,
        "archive_bytes": entry.archive.shard.num_bytes if entry.archive else 0,
        "shared": entry.shared[:16],
        "num_tensors": len(entry.tensors),
        "source": entry.provenance.source,
        "source_dtype": entry.provenance.dtype,
        "is_derived": is_derived,
    }


def _shared_summary(shared: SharedRecord) -> dict[str, Any]:
    return {
        "scheme": shared.scheme,
        "tasks": sorted(shared.derivation.bound),
        "bytes": shared.content.shard.num_bytes,
        "resident_bytes": shared.content.resident_bytes,
    }


def _plane_summary(plane: PlaneRecord) -> dict[str, Any]:
    return {
        "method": plane.derivation.method,
        "tasks": sorted(plane.derivation.bound),
        "density": plane.density,
        "bytes": plane.content.shard.num_bytes,
        "resident_bytes": plane.content.resident_bytes,
    }
