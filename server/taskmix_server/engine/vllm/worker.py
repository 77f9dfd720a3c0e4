"""What the front may ask of a worker by `collective_rpc`.

vLLM mixes this class into its worker. Errors return as data: an exception raised here would be
flattened to text on its way and logged as a failure of the engine.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from taskmix_composer.errors import ComposerError
from taskmix_composer.mix import Mix
from taskmix_server.engine.vllm.manager import MixManager
from taskmix_server.errors import ServingError

Reply = dict[str, Any]
"""`{"value": ...}`, or `{"error": class name, "message": text}`."""


class _HasRunner(Protocol):
    model_runner: Any


class MixWorker:
    """Worker verbs of taskmix, prefixed so that none can collide with vLLM's."""

    def taskmix_begin_load(self: _HasRunner, name: str, digest: str) -> Reply:
        return _reply(lambda: _manager(self).begin_load(name, digest))

    def taskmix_begin_unload(self: _HasRunner, digest: str) -> Reply:
        return _reply(lambda: _manager(self).begin_unload(digest))

    def taskmix_finish(self: _HasRunner) -> Reply:
        return _reply(lambda: _manager(self).finish())

    def taskmix_register(
        self: _HasRunner,
        path: str,
        mix_json: str,
        digests: Mapping[str, str],
        planes: Mapping[str, str],
    ) -> Reply:
        return _reply(lambda: _manager(self).register(path, Mix.parse(mix_json), digests, planes))

    def taskmix_forget(self: _HasRunner, path: str) -> Reply:
        return _reply(lambda: _manager(self).forget(path))

    def taskmix_memory(self: _HasRunner) -> Reply:
        return _reply(lambda: _manager(self).memory())


def _manager(worker: _HasRunner) -> MixManager:
    manager: MixManager = worker.model_runner.lora_manager
    return manager


def _reply(call: Callable[[], Any]) -> Reply:
    try:
        return {"value": call()}
    except (ComposerError, ServingError) as error:
        return {"error": type(error).__name__, "message": str(error)}
    except (MemoryError, torch.OutOfMemoryError) as error:
        return {"error": "ResourceExhaustedError", "message": f"out of memory: {error}"}
