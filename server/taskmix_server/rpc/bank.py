"""`taskmix.v1.BankService` on gRPC."""

from taskmix.v1 import bank_pb2 as pb
from taskmix.v1 import bank_pb2_grpc
from taskmix_server.rpc import convert
from taskmix_server.rpc.status import Context, reported
from taskmix_server.services.bank import BankService


class BankServicer(bank_pb2_grpc.BankServiceServicer):
    """The admin verbs."""

    def __init__(self, bank: BankService) -> None:
        self._bank = bank

    async def ListTasks(
        self, request: pb.ListTasksRequest, context: Context
    ) -> pb.ListTasksResponse:
        async with reported(context):
            tasks = [convert.to_task_info(status) for status in self._bank.list_tasks()]
            return pb.ListTasksResponse(tasks=tasks, bank_revision=self._bank.revision)

    async def LoadTask(self, request: pb.LoadTaskRequest, context: Context) -> pb.LoadTaskResponse:
        async with reported(context):
            task = convert.to_task_info(await self._bank.load_task(request.name))
            return pb.LoadTaskResponse(task=task, bank_revision=self._bank.revision)

    async def UnloadTask(
        self, request: pb.UnloadTaskRequest, context: Context
    ) -> pb.UnloadTaskResponse:
        async with reported(context):
            status = await self._bank.unload_task(request.name)
            return pb.UnloadTaskResponse(task=convert.to_task_info(status))

    async def RegisterMix(
        self, request: pb.RegisterMixRequest, context: Context
    ) -> pb.RegisterMixResponse:
        async with reported(context):
            mix = convert.to_mix(request.mix)
            described = await self._bank.register_mix(request.name, mix)
            return pb.RegisterMixResponse(mix=convert.to_named_mix(described))

    async def ListMixes(
        self, request: pb.ListMixesRequest, context: Context
    ) -> pb.ListMixesResponse:
        async with reported(context):
            mixes = [convert.to_named_mix(mix) for mix in await self._bank.list_mixes()]
            return pb.ListMixesResponse(mixes=mixes)

    async def DeleteMix(
        self, request: pb.DeleteMixRequest, context: Context
    ) -> pb.DeleteMixResponse:
        async with reported(context):
            await self._bank.delete_mix(request.name)
            return pb.DeleteMixResponse()
