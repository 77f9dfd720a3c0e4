"""A real gRPC server on a free port whose answers a test writes beforehand."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from taskmix.v1 import (
    admin_pb2_grpc,
    bank_pb2_grpc,
    experiments_pb2_grpc,
    inference_pb2_grpc,
)

Handler = Callable[[Any, grpc.ServicerContext], Any]


@dataclass
class Script:
    """What the server does per method, and what reached it."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    headers: list[dict[str, Any]] = field(default_factory=list)
    target: str = ""

    def answer(self, method: str, handler: Handler) -> None:
        """Let `handler` answer calls of `method`."""
        self.handlers[method] = handler

    def run(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        """Note the call, then answer it."""
        self.requests.append(request)
        self.headers.append(dict(context.invocation_metadata()))
        return self.handlers[method](request, context)


def _servicer(base: type, script: Script) -> Any:
    def method(name: str) -> Callable[..., Any]:
        return lambda _self, request, context: script.run(name, request, context)

    names = [name for name in vars(base) if not name.startswith("_")]
    return type("Scripted", (base,), {name: method(name) for name in names})()


@contextmanager
def serving(script: Script) -> Iterator[Script]:
    """Serve `script` on a free port of the loopback interface."""
    with ThreadPoolExecutor(max_workers=4) as threads:
        server = grpc.server(threads)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            _servicer(inference_pb2_grpc.InferenceServiceServicer, script), server
        )
        bank_pb2_grpc.add_BankServiceServicer_to_server(
            _servicer(bank_pb2_grpc.BankServiceServicer, script), server
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            _servicer(admin_pb2_grpc.AdminServiceServicer, script), server
        )
        experiments_pb2_grpc.add_ExperimentServiceServicer_to_server(
            _servicer(experiments_pb2_grpc.ExperimentServiceServicer, script), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        script.target = f"127.0.0.1:{port}"
        server.start()
        try:
            yield script
        finally:
            server.stop(grace=None).wait()
