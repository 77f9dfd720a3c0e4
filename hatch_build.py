"""Compiles the CPU kernels while a wheel is made, or an editable install.

They are optional: without a C compiler, or for another kind of processor, the wheel is a pure one
and deltas are multiplied by PyTorch.
"""

import platform
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("composer/taskmix_composer/kernels/native")
LIBRARY = SOURCES / "libtaskmix_kernels.so"
FLAGS = ("-O3", "-fno-tree-pre", "-std=gnu11", "-fPIC", "-fopenmp", "-Wall", "-Wextra")
"""Without -fno-tree-pre the products spill more registers and take 3 to 5 % longer (GCC 12)."""
LEVELS = {
    "avx2": ("-march=x86-64-v3",),
    "avx512": ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"),
}
"""Instruction sets, and what makes a compiler use them."""
ENTRIES = ("products", "lookups", "weights", "norms")
"""Sources that are compiled for each of them; of the others there is one object."""
PLAIN = ("level", "scratch")


class CompileHook(BuildHookInterface):
    """Puts the library beside its sources and into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, if this machine can."""
        if self.target_name != "wheel":
            return
        reason = compile_library(Path(self.root))
        if reason:
            self.app.display_warning(f"taskmix without its CPU kernels: {reason}")
            return
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["artifacts"].append(LIBRARY.as_posix())
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"


def compile_library(root: Path, extra_flags: tuple[str, ...] = ()) -> str:
    """Compile the library below `root`; returns why not, or nothing."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "there is no C compiler (cc)"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"there are none for {platform.machine()}"
    with tempfile.TemporaryDirectory() as folder:
        commands = [
            [
                compiler,
                *FLAGS,
                *extra_flags,
                *flags,
                "-c",
                f"{source}.c",
                "-o",
                f"{folder}/{name}.o",
            ]
            for name, source, flags in _objects()
        ]
        with ThreadPoolExecutor() as pool:
            errors = list(pool.map(lambda command: _run(command, root / SOURCES), commands))
        # OpenMP's functions are left open: torch, which is loaded before, brings its own.
        linked = Path(folder) / LIBRARY.name
        objects = [f"{folder}/{name}.o" for name, _, _ in _objects()]
        errors.append(_run([compiler, "-shared", *extra_flags, "-o", str(linked), *objects], root))
        if any(errors):
            return f"{compiler} failed: " + next(filter(None, errors)).strip()
        # Replaced as a whole, since a process may have the old one mapped.
        staged = (root / LIBRARY).with_suffix(".new")
        shutil.copy(linked, staged)
        staged.replace(root / LIBRARY)
    return ""


def _objects() -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, source and flags of each object."""
    plain = [(source, source, ()) for source in PLAIN]
    leveled = [
        (f"{source}_{level}", source, (*flags, f"-DTM_LEVEL={level}"))
        for source in ENTRIES
        for level, flags in LEVELS.items()
    ]
    return plain + leveled


def _run(command: list[str], folder: Path) -> str:
    """What a command says if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - fixed
    return done.stderr or "no message" if done.returncode else ""
