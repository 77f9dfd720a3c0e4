"""Start `taskmix serve` in the background and wait until it takes requests."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

SCRIPT = Path(sys.executable).parent / "taskmix"


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: where it listens, and the process to end it by."""

    grpc: str
    http: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def port(self) -> str:
        return self.http.rpartition(":")[2]

    def stop(self) -> None:
        """Drain it and wait for its end."""
        self.process.terminate()
        self.process.wait(timeout=60)


def start_server(
    base: Path,
    bank: Path,
    log: Path,
    *flags: str,
    lifetime_s: int | None = None,
    environment: Sequence[str] = (),
) -> Served:
    """Serve on free loopback ports; with `lifetime_s` the server ends by itself after that time.

    `environment` are arguments of `env`, such as `NAME=VALUE`.
    """
    command = [str(SCRIPT), "serve", "--base", str(base), "--bank", str(bank)]
    command += ["--grpc-port", "0", "--http-port", "0", *flags]
    if lifetime_s is not None:
        timeout = shutil.which("timeout") or "timeout"
        command = [timeout, "--signal=TERM", str(lifetime_s), *command]
    if environment:
        command = [shutil.which("env") or "env", *environment, *command]
    with log.open("w") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
    assert process.stdout is not None, "a pipe was asked for"
    line = process.stdout.readline()
    if not line:
        process.wait()
        last = "\n".join(log.read_text().splitlines()[-5:])
        raise click.ClickException(f"the server did not start; {log} ends with:\n{last}")
    ready = json.loads(line)
    return Served(ready["grpc"], ready["http"], process, log)
