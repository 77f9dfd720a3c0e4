"""The gRPC server: our services, health and reflection."""

import asyncio
import time
from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from taskmix.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    bank_pb2,
    bank_pb2_grpc,
    experiments_pb2,
    experiments_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from taskmix_server.domain.limits import MAX_HEAD_BYTES, MAX_REQUEST_BYTES
from taskmix_server.errors import FailedPreconditionError
from taskmix_server.rpc.access import AccessInterceptor
from taskmix_server.rpc.admin import AdminServicer
from taskmix_server.rpc.bank import BankServicer
from taskmix_server.rpc.experiments import ExperimentServicer
from taskmix_server.rpc.inference import InferenceServicer
from taskmix_server.rpc.reading import ReadingInterceptor
from taskmix_server.runtime.certificates import CertificateFiles, KeyPair
from taskmix_server.services.services import Services
from taskmix_server.tenancy.rules import check_covered

MAX_STREAMS = 1024
IDLE_S = 300.0
KEEP_ALIVE_S = 30.0
KEEP_ALIVE_ANSWER_S = 10.0
MAX_AGE_S = 3600.0
HEALTH_POLL_S = 1.0
CHANGE_S = 0.2
"""How long handshakes wait when the certificate has changed."""

OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", MAX_HEAD_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_HEAD_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.max_connection_idle_ms", round(IDLE_S * 1000)),
    # A peer that is gone or has stopped does not answer, and what it left open goes with it.
    ("grpc.keepalive_time_ms", round(KEEP_ALIVE_S * 1000)),
    ("grpc.keepalive_timeout_ms", round(KEEP_ALIVE_ANSWER_S * 1000)),
    # Callers are told to connect anew, and have as long again to finish what they started.
    ("grpc.max_connection_age_ms", round(MAX_AGE_S * 1000)),
    ("grpc.max_connection_age_grace_ms", round(MAX_AGE_S * 1000)),
)
"""Of a connection: how much it may send before it is looked at, and how long it may be idle."""

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    bank_pb2.DESCRIPTOR.services_by_name["BankService"].full_name,
    experiments_pb2.DESCRIPTOR.services_by_name["ExperimentService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
)
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class GrpcEdge:
    """Serves our services until it is stopped."""

    def __init__(self, services: Services, certificate: CertificateFiles | None = None) -> None:
        check_covered(methods((*SERVICES, HEALTH, reflection.SERVICE_NAME)))
        interceptors = (ReadingInterceptor(), AccessInterceptor(services.access))
        self._server = grpc.aio.server(interceptors=interceptors, options=OPTIONS)
        self._certificate = certificate
        self._health = HealthServicer()
        self._inference = services.inference
        self._watch: asyncio.Task[None] | None = None
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceServicer(services.inference), self._server
        )
        bank_pb2_grpc.add_BankServiceServicer_to_server(BankServicer(services.bank), self._server)
        experiments_pb2_grpc.add_ExperimentServiceServicer_to_server(
            ExperimentServicer(services.experiments), self._server
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminServicer(services.tenants), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, reflection.SERVICE_NAME), self._server)

    async def start(self, host: str, port: int) -> int:
        """Listen; port 0 picks a free one. Returns the port."""
        try:
            address = f"[{host}]" if ":" in host else host
            bound = self._bind(f"{address}:{port}")
        except RuntimeError as error:
            raise FailedPreconditionError(
                f"cannot listen on {host}:{port} for gRPC; choose another --grpc-port or 0"
            ) from error
        await self._server.start()
        await self.set_serving(is_serving=True)
        self._watch = asyncio.create_task(self._follow_readiness())
        return bound

    def _bind(self, address: str) -> int:
        if self._certificate is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, credentials(self._certificate))

    async def set_serving(self, *, is_serving: bool) -> None:
        """What health checks see, for the server as a whole and for each service."""
        state = health_pb2.HealthCheckResponse
        for name in ("", *SERVICES):
            await self._health.set(name, state.SERVING if is_serving else state.NOT_SERVING)

    async def _follow_readiness(self) -> None:
        """Health checks fail from the engine's death until it is back."""
        was_ready = True
        while True:
            await asyncio.sleep(HEALTH_POLL_S)
            is_ready = self._inference.is_ready
            if is_ready != was_ready:
                await self.set_serving(is_serving=is_ready)
            was_ready = is_ready

    async def stop(self, grace_s: float) -> None:
        """Close the port and wait for open calls, at most `grace_s`."""
        if self._watch is not None:
            self._watch.cancel()
        await self._server.stop(grace_s)


def methods(services: Iterable[str]) -> list[str]:
    """The path of every method of these services, as calls name it."""
    pool = descriptor_pool.Default()
    return [
        f"/{service}/{method.name}"
        for service in services
        for method in pool.FindServiceByName(service).methods
    ]


def credentials(certificate: CertificateFiles) -> grpc.ServerCredentials:
    """Credentials that ask for the certificate at each handshake.

    gRPC lets go of what it made of the last certificate although another thread may be about to
    start a handshake with it, and dies of that (grpc/grpc#36693). So it is given a new one only if
    there is one, and after a moment in which those that are about to start can do so: until it has
    its answer, no other handshake comes that far.
    """
    given = certificate.current

    def configuration() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        pair = certificate.current
        if pair is given:
            return None
        time.sleep(CHANGE_S)
        given = pair
        return _configuration(pair)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        configuration,  # type: ignore[arg-type] # None, for no new one, is missing in the stubs
    )


def _configuration(pair: KeyPair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)])
