"""How small and how fast the archival scheme is: `python -m benchmarks.exact BASE TUNED...`."""

import argparse
import time
from pathlib import Path

import torch

from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.quant import exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path, nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = Checkpoint.open(options.base)
    for directory in options.tuned:
        measure(base, Checkpoint.open(directory))


def measure(base: Checkpoint, tuned: Checkpoint) -> None:
    """Print one fine-tune's coded size and how fast a core codes and restores it."""
    stored_bytes = coded_bytes = 0
    encode_s = restore_s = 0.0
    for name in base.tensors:
        reference, values = base.read(name).clone(), tuned.read(name).clone()
        stored_bytes += values.nbytes
        if torch.equal(reference, values):
            continue
        started = time.process_time()
        parts = exact.encode(reference, values)
        encoded = time.process_time()
        restored = exact.restore(reference, parts)
        restore_s += time.process_time() - encoded
        encode_s += encoded - started
        if not torch.equal(restored.view(torch.int16), values.view(torch.int16)):
            raise SystemExit(f"{tuned.directory}: {name} is not restored bit for bit")
        coded_bytes += sum(part.nbytes for part in parts.values())
    share, megabytes = 100 * coded_bytes / stored_bytes, stored_bytes / 1e6
    print(
        f"{tuned.directory.name}: {share:.2f} % of {megabytes:.1f} MB, "
        f"encode {megabytes / encode_s:.1f} MB/s, restore {megabytes / restore_s:.1f} MB/s"
    )


if __name__ == "__main__":
    main()
