"""`taskmix.v1.InferenceService` on gRPC."""

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

from taskmix.v1 import inference_pb2 as pb
from taskmix.v1 import inference_pb2_grpc
from taskmix_server.rpc import convert
from taskmix_server.rpc.status import Context, reported
from taskmix_server.services.inference import InferenceService


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Cancelling a call, or its deadline, closes the service's iterator and stops the work."""

    def __init__(self, inference: InferenceService) -> None:
        self._inference = inference

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        request_id = uuid.uuid4().hex
        async with reported(context, request_id), self._inference.counted("grpc"):
            result = await self._inference.generate(convert.to_request(request, request_id))
            return convert.to_generate_response(result)
        raise AssertionError("reported ends the call")

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        request_id = uuid.uuid4().hex
        async with reported(context, request_id), self._inference.counted("grpc"):
            wanted = convert.to_request(request.request, request_id)
            async with aclosing(self._inference.stream(wanted)) as chunks:
                async for chunk in chunks:
                    yield convert.to_stream_response(chunk)
