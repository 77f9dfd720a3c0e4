"""`taskmix.v1.InferenceService` on gRPC."""

import uuid
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from functools import partial

from taskmix.v1 import inference_pb2 as pb
from taskmix.v1 import inference_pb2_grpc
from taskmix_server.domain.generation import GenerationRequest
from taskmix_server.rpc import convert
from taskmix_server.rpc.access import caller
from taskmix_server.rpc.status import OK_STATUS, Context, reported, status_name
from taskmix_server.rpc.writing import write
from taskmix_server.services.inference import InferenceService
from taskmix_server.telemetry.requests import TRACE_HEADERS, RequestRecord


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Cancelling a call, or its deadline, closes the service's iterator and stops the work."""

    def __init__(self, inference: InferenceService) -> None:
        self._inference = inference

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        record = new_record(context)
        async with reported(context, record.request_id), self._observed(record, context):
            wanted = limited(request, record.request_id)
            result = await self._inference.generate(wanted, caller(), record)
            return convert.to_generate_response(result)
        raise AssertionError("reported ends the call")

    async def StreamGenerate(  # type: ignore[override]  # grpc.aio takes one that writes, too
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> None:
        record = new_record(context)
        async with reported(context, record.request_id), self._observed(record, context):
            wanted = limited(request.request, record.request_id)
            async with aclosing(self._inference.stream(wanted, caller(), record)) as chunks:
                async for chunk in chunks:
                    await write(context, convert.to_stream_response(chunk))

    def _observed(
        self, record: RequestRecord, context: Context
    ) -> AbstractAsyncContextManager[RequestRecord]:
        return self._inference.observed(record, partial(status_name, context))


def limited(message: pb.GenerateRequest, request_id: str) -> GenerationRequest:
    """The request with its answer's length within the caller's limit, or InvalidRequestError."""
    wanted = convert.to_request(message, request_id)
    sampling, is_asked = wanted.sampling, message.sampling.HasField("max_tokens")
    limits = caller().tenant.limits
    most = limits.output_tokens(sampling.max_tokens if is_asked else None, sampling.max_tokens)
    assert most is not None, "there is a default"
    return replace(wanted, sampling=replace(sampling, max_tokens=most))


def new_record(context: Context) -> RequestRecord:
    """A record of a call that begins, with the caller's trace."""
    metadata = context.invocation_metadata() or ()
    carrier = {key: str(value) for key, value in metadata if key in TRACE_HEADERS}
    return RequestRecord(uuid.uuid4().hex, "grpc", caller().name, carrier=carrier, status=OK_STATUS)
