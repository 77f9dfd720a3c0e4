"""Where a client calls, as whom, and how patiently."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskmix_client.errors import InvalidArgumentError

# Repeating these changes nothing. DeleteMix is absent: a repeated one would report NOT_FOUND.
REPEATABLE = {
    "taskmix.v1.InferenceService": ("Generate", "StreamGenerate"),
    "taskmix.v1.BankService": ("ListTasks", "LoadTask", "UnloadTask", "RegisterMix", "ListMixes"),
    "taskmix.v1.ExperimentService": (
        *("CreateExperiment", "GetExperiment", "ListExperiments", "RampExperiment"),
        *("RecordOutcomes", "GetResults"),
    ),
    "taskmix.v1.AdminService": (
        *("ListTenants", "UpdateTenant", "ListKeys", "RevokeKey", "ListAudit"),
    ),
}
# gRPC's own ceiling.
MAX_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """One server and how to call it.

    `timeout_s` is the default limit of a call in seconds, None for none. `max_attempts` counts the
    first one. `ca` is a PEM file of the authorities to trust in place of the system's; it implies
    `tls`. The API key stays out of the repr.
    """

    target: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float | None = None
    max_attempts: int = 4
    tls: bool = False
    ca: Path | None = None

    def __post_init__(self) -> None:
        if not self.target:
            raise InvalidArgumentError("target is empty: name a server as HOST:PORT")
        self.limit_s(None)
        if not 1 <= self.max_attempts <= MAX_ATTEMPTS:
            raise InvalidArgumentError(
                f"max_attempts must be in [1, {MAX_ATTEMPTS}], got {self.max_attempts}"
            )

    def limit_s(self, timeout_s: float | None) -> float | None:
        """The seconds that one call may take: its own limit, else the default."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        if limit_s is not None and not 0 < limit_s < math.inf:
            raise InvalidArgumentError(f"timeout_s must be positive and finite, got {limit_s}")
        return limit_s

    @property
    def root_certificates(self) -> bytes | None:
        """The authorities to trust; None for the system's. Raises OSError."""
        return None if self.ca is None else self.ca.read_bytes()

    @property
    def is_secure(self) -> bool:
        return self.tls or self.ca is not None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers of every call."""
        if self.api_key is None:
            return ()
        return (("authorization", f"Bearer {self.api_key}"),)

    @property
    def channel_options(self) -> list[tuple[str, Any]]:
        """gRPC's options: its retries for the repeatable calls, answers of any length."""
        return [
            ("grpc.service_config", json.dumps(self._service_config())),
            ("grpc.max_receive_message_length", -1),
        ]

    def _service_config(self) -> dict[str, Any]:
        if self.max_attempts == 1:
            return {}
        names = [
            {"service": service, "method": method}
            for service, methods in REPEATABLE.items()
            for method in methods
        ]
        policy = {
            "maxAttempts": self.max_attempts,
            "initialBackoff": "0.1s",
            "maxBackoff": "5s",
            "backoffMultiplier": 3,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        }
        return {"methodConfig": [{"name": names, "retryPolicy": policy}]}
