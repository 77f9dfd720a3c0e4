"""`taskmix serve` as a process of its own, and what its `/metrics` says."""

import json
import os
import select
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

TASKMIX = (sys.executable, "-m", "taskmix_server")
START_S = 240.0
STOP_S = 60.0

FLAGS = (
    *("--block-size", "32"),
    *("--max-model-len", "512"),
    *("--max-num-seqs", "16"),
    *("--kv-cache-memory", str(64 * 2**20)),
    *("--grpc-port", "0"),
    *("--http-port", "0"),
)
"""A small engine on free ports."""


@dataclass(frozen=True)
class Served:
    """A server that takes requests. `grpc` is HOST:PORT, `http` a URL."""

    process: subprocess.Popen[str]
    grpc: str
    http: str
    log: Path

    def signal(self, number: int, *, whole_group: bool = False) -> None:
        """Signal the server, or all of its process group as a terminal does."""
        if whole_group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the engine's processes for the block: what is in flight then stays in flight."""
        engine = psutil.Process(self.process.pid).children(recursive=True)
        for process in engine:
            process.suspend()
        try:
            yield
        finally:
            for process in engine:
                process.resume()

    def exit_code(self) -> int:
        """Wait for the end of the server."""
        return self.process.wait(STOP_S)


@contextmanager
def serving(
    base: Path, bank: Path, state: Path, *flags: str, environment: tuple[str, ...] = ()
) -> Iterator[Served]:
    """Start `taskmix serve`; at the end, unless the block ended it, SIGTERM must give exit 0.

    environment: further variables, NAME=VALUE.
    """
    state.mkdir(parents=True, exist_ok=True)
    log = state / "stderr.log"
    command = (*TASKMIX, "serve", "--base", str(base), "--bank", str(bank), "--state", str(state))
    with log.open("a") as stderr:
        process = subprocess.Popen(
            ["env", *environment, *command, *FLAGS, *flags],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    try:
        ready = _ready_line(process, log)
        yield Served(process, ready["grpc"], f"http://{ready['http']}", log)
        if process.poll() is None:
            process.terminate()
            remainder, _ = process.communicate(timeout=STOP_S)
            assert (process.returncode, remainder) == (0, ""), log.read_text()[-4000:]
    finally:
        _kill_session(process.pid)
        process.communicate()


def taskmix(*arguments: str | Path) -> str:
    """Run a verb of the command that ends by itself; its standard output."""
    ran = subprocess.run(
        [*TASKMIX, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def admin_key(state: Path) -> str:
    """Create an admin `ops` on a state directory; its key."""
    taskmix("tenants", "create", "ops", "--role", "admin", "--state", state)
    return taskmix("keys", "create", "ops", "--state", state).strip()


def metrics(http: str) -> dict[str, float]:
    """Every sample of `/metrics` by its name and labels, as written there."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=30) as response:
        return samples(response.read().decode())


def samples(text: str) -> dict[str, float]:
    """Every sample of Prometheus text by its name and labels, as written there."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def _kill_session(leader: int) -> None:
    """Kill a server and what it started, stopped processes and orphans too: they hold its pipe."""
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader:
                process.kill()


def _ready_line(process: subprocess.Popen[str], log: Path) -> dict[str, str]:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if readable else ""
    assert line, f"the server did not become ready:\n{log.read_text()[-4000:]}"
    ready = json.loads(line)
    assert ready.pop("ready") is True
    assert ready.keys() == {"grpc", "http"}
    return dict(ready)
