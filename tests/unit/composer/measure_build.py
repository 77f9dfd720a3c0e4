"""Build a bank and print by how many bytes anonymous resident memory grew at most.

Arguments: base directory, fine-tuned directory, scheme, bank to write.
"""

import sys
import threading
from pathlib import Path

import torch

from taskmix_composer.build import build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def main() -> None:
    base, tuned, scheme, out = sys.argv[1:]
    torch.zeros(1 << 20).add(1).sum()
    start = anonymous_bytes()
    peak = start
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.002):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    build_bank(Path(base), {"task": Path(tuned)}, Forms(Scheme(scheme)), Path(out))
    finished.set()
    watcher.join()
    sys.stdout.write(f"{peak - start}\n")


main()
