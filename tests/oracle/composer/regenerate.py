"""Compares the committed outputs of reference implementations with what these give now.

Runs in an environment of its own, with mergekit and fusion-bench: `make oracle`. With --write it
replaces the committed files.
"""

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.oracle.composer.references.cases import Files, make_files
from tests.oracle.composer.references.vectors import Deltas

DATA = Path(__file__).parent / "data"
# Another processor's matrix products may round the last bits of a singular vector differently.
TOLERANCE = 1e-6


def difference(committed: Deltas, computed: Deltas) -> str | None:
    """What differs between two files' tensors, or None."""
    if committed.keys() != computed.keys():
        return "other tensors"
    for name, tensor in computed.items():
        before = committed[name]
        if before.shape != tensor.shape or before.dtype != tensor.dtype:
            return f"{name}: other shape or type"
        distance = (before.double() - tensor.double()).norm()
        limit = TOLERANCE * before.double().norm() if tensor.is_floating_point() else 0
        if distance > limit:
            return f"{name}: {distance:.3g} apart"
    return None


def compare(files: Files) -> list[str]:
    """Lines on every committed file that is not what the references give now."""
    paths = {path.name.removesuffix(".safetensors"): path for path in DATA.glob("*.safetensors")}
    lines = [f"{name}: no longer produced" for name in paths.keys() - files.keys()]
    for name, (case, tensors) in files.items():
        if name not in paths:
            lines.append(f"{name}: not committed")
            continue
        with safe_open(paths[name], framework="pt") as file:
            is_same_case = (file.metadata() or {}) == case
        found = difference(load_file(paths[name]), tensors) if is_same_case else "other parameters"
        lines += [f"{name}: {found}"] if found else []
    return lines


def write(files: Files) -> None:
    """Replace the committed files."""
    DATA.mkdir(exist_ok=True)
    for path in DATA.glob("*.safetensors"):
        path.unlink()
    for name, (case, tensors) in files.items():
        save_file(tensors, DATA / f"{name}.safetensors", metadata=case)


if __name__ == "__main__":
    torch.set_num_threads(1)
    produced = make_files()
    if sys.argv[1:] == ["--write"]:
        write(produced)
        sys.exit(0)
    sys.exit("\n".join(compare(produced)) or 0)
