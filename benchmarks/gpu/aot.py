"""What the compiler makes of each kernel, without a device: `python -m benchmarks.gpu.aot`.

Writes results/aot.md and results/aot.json; exits 1 if a kernel does not compile or spills.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import triton

from benchmarks.gpu.disassembly import disassemble
from benchmarks.gpu.variants import Variant, all_variants

RESULTS = Path(__file__).parents[1] / "results"
WEIGHTS_PER_STEP = 64 * 256
COLUMNS = (
    "kernel", "sm", "warps", "registers", "spills", "shared bytes", "loads", "stores",
    "matrix unit", "loop", "per weight",
)  # fmt: skip
HEADER = f"""# Kernels ahead of time

What Triton {triton.__version__} and its own assembler make of every kernel variant, with no device.
Made by `python -m benchmarks.gpu.aot`; a test fails on a spill. *Loop* is the instructions of one
step of an innermost loop that multiplies matrices; *per weight* is what a multiprocessor's lanes
issue for each weight that is decoded, where a step is a tile of 64 by 256 (64 by 128 for two tasks'
masks): it issues 128 a cycle. Loads name the bits of one instruction; `LDGSTS` goes to shared
memory past the registers.

| {" | ".join(COLUMNS)} |
{"|---" * len(COLUMNS)}|
"""


@dataclass(frozen=True, slots=True)
class Report:
    """One variant for devices of one capability; see `Disassembly`."""

    kernel: str
    capability: int
    warps: int
    registers: int
    spills: int
    stack_bytes: int
    shared_bytes: int
    loads: Mapping[str, int]
    stores: Mapping[str, int]
    matrix: tuple[str, ...]
    loops: tuple[int, ...]

    @property
    def is_spilling(self) -> bool:
        return self.spills > 0 or self.stack_bytes > 0

    def line(self) -> str:
        """One row of the table."""
        is_separable = self.kernel.startswith(("products", "masked products"))
        lanes = [loop * 32 * self.warps / WEIGHTS_PER_STEP for loop in self.loops]
        cells = [
            self.kernel, self.capability, self.warps, self.registers, self.spills,
            self.shared_bytes, _counts(self.loads), _counts(self.stores), " ".join(self.matrix),
            " ".join(map(str, self.loops)),
            " ".join(f"{each:.1f}" for each in lanes) if is_separable else "",
        ]  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |\n"


def report_on(variant: Variant, capability: int) -> Report:
    """Compile a variant and read it back."""
    compiled = variant.compiled(capability)
    found = disassemble(compiled.asm["cubin"])
    return Report(
        kernel=variant.name,
        capability=capability,
        warps=variant.choice.warps,
        registers=found.registers,
        spills=found.spills,
        stack_bytes=found.stack_bytes,
        shared_bytes=compiled.metadata.shared,
        loads=dict(sorted(found.loads.items())),
        stores=dict(sorted(found.stores.items())),
        matrix=found.matrix,
        loops=found.loops,
    )


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in found.items())


def main() -> None:
    reports = []
    for variant in all_variants():
        for capability in variant.capabilities:
            reports.append(report_on(variant, capability))
            print(reports[-1].line(), end="", flush=True)
    table = HEADER + "".join(report.line() for report in reports)
    (RESULTS / "aot.md").write_text(table, encoding="utf-8")
    records = ",\n".join(json.dumps(asdict(report)) for report in reports)
    (RESULTS / "aot.json").write_text(f"[\n{records}\n]\n", encoding="utf-8")
    spilling = [report.kernel for report in reports if report.is_spilling]
    if spilling:
        sys.exit(f"these kernels spill: {spilling}")


if __name__ == "__main__":
    main()
