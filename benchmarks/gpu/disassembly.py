"""What the assembler made of a kernel: its registers, memory, load widths and main loop."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\S*?);?\s(.*)")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
LOADS = ("LDG", "LDGSTS", "UBLKCP", "UTMALDG")
STORES = ("STG", "ATOM", "RED")


@dataclass(frozen=True, slots=True)
class Disassembly:
    """registers: of a thread. stack_bytes: of a thread, where what is spilled lies.

    spills: loads and stores of local memory. widths: instructions that read or write global
    memory, by kind and bits. loops: instructions of each innermost loop that multiplies matrices;
    matrix: the kinds of matrix instructions.
    """

    registers: int
    stack_bytes: int
    spills: int
    loads: Counter[str]
    stores: Counter[str]
    loops: tuple[int, ...]
    matrix: tuple[str, ...]


def disassemble(cubin: bytes) -> Disassembly:
    """Read a compiled kernel back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        resources = _run("cuobjdump", "--dump-resource-usage", str(path))
        text = _run("nvdisasm", "-c", str(path))
    found = _RESOURCES.search(resources)
    if found is None:
        raise ValueError(f"cuobjdump names no resources: {resources}")
    instructions, loops = _parse(text)
    operations = [operation for operation, _ in instructions]
    return Disassembly(
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        spills=sum(operation.startswith(("LDL", "STL")) for operation in operations),
        loads=_widths(operations, LOADS),
        stores=_widths(operations, STORES),
        loops=tuple(last - first + 1 for first, last in _matrix_loops(operations, loops)),
        matrix=tuple(sorted({o.split(".")[0] for o in operations if _is_matrix(o)})),
    )


def _run(tool: str, *arguments: str) -> str:
    command = [str(TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - fixed


def _parse(text: str) -> tuple[list[tuple[str, str]], list[tuple[int, int]]]:
    """All instructions, and the first and last of each loop."""
    instructions: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.search(line):
            instructions.append((instruction[1], instruction[2]))
    loops = []
    for index, (operation, operands) in enumerate(instructions):
        target = re.search(r"\.L_x_\d+", operands) if operation.startswith("BRA") else None
        if target and labels.get(target[0], index + 1) <= index:
            loops.append((labels[target[0]], index))
    return instructions, loops


def _matrix_loops(
    operations: Sequence[str], loops: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Innermost loops with matrix instructions."""
    multiplying = [
        loop for loop in loops if any(map(_is_matrix, operations[loop[0] : loop[1] + 1]))
    ]
    return [
        loop
        for loop in multiplying
        if not any(loop[0] <= a and b <= loop[1] and (a, b) != loop for a, b in multiplying)
    ]


def _is_matrix(operation: str) -> bool:
    return operation.split(".")[0] in ("HMMA", "HGMMA")


def _widths(operations: Sequence[str], kinds: Sequence[str]) -> Counter[str]:
    """How many instructions of these kinds move how many bits; 32 where the name says nothing."""
    found: Counter[str] = Counter()
    for operation in operations:
        kind, *modifiers = operation.split(".")
        if kind in kinds:
            width = next((m for m in modifiers if m.strip("US") in ("8", "16", "64", "128")), "32")
            found[f"{kind}.{width}"] += 1
    return found
