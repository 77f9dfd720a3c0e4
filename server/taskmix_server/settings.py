"""What an operator chooses, composed of the parts' own configs. The environment is read here."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from taskmix_server.engine.config import EngineConfig
from taskmix_server.telemetry.config import TelemetryConfig
from taskmix_server.tenancy.config import AccessConfig


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `taskmix serve` needs to start.

    max_queued: answers that may wait for the engine; None is a multiple of what it runs at a time.
    engine_timeout_s: how long the engine may give no answer before it is ended and started again.
    task_bytes: what tasks may take in the engine; None keeps every task of the bank there.
    """

    engine: EngineConfig
    state: Path
    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 8000
    drain_s: float = 15.0
    max_queued: int | None = None
    engine_timeout_s: float = 120.0
    task_bytes: int | None = None
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    access: AccessConfig = field(default_factory=AccessConfig)


def default_state() -> Path:
    """The state directory where none was chosen: `$XDG_STATE_HOME/taskmix`."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "taskmix"


def default_cache() -> Path:
    """Where what can be made again is kept: `$XDG_CACHE_HOME/taskmix`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "taskmix"


def prepare_engine_environment() -> None:
    """Settings that vLLM takes from the environment alone, for this process and its children.

    Call it before vLLM is imported: it sets up its logging then.
    """
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"  # stdout carries one line: ready
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"] = "1"  # the HTTP edge reports it and stays
