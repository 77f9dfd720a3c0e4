"""`taskmix.v1.ExperimentService` on gRPC."""

from taskmix.v1 import experiments_pb2 as pb
from taskmix.v1 import experiments_pb2_grpc
from taskmix_server.domain.limits import check_count
from taskmix_server.experiments.recording import MAX_OUTCOMES
from taskmix_server.experiments.results import ALPHA
from taskmix_server.rpc import convert_experiments as convert
from taskmix_server.rpc.access import caller
from taskmix_server.rpc.convert_results import to_results_message
from taskmix_server.rpc.status import Context, reported
from taskmix_server.services.experiments import ExperimentService


class ExperimentServicer(experiments_pb2_grpc.ExperimentServiceServicer):
    """The verbs on experiments, outcomes and results."""

    def __init__(self, experiments: ExperimentService) -> None:
        self._experiments = experiments

    async def CreateExperiment(
        self, request: pb.CreateExperimentRequest, context: Context
    ) -> pb.CreateExperimentResponse:
        async with reported(context) as request_id:
            draft = convert.to_draft(request)
            created = await self._experiments.create(
                caller(), draft, request_id, is_new_version=request.is_new_version
            )
            message = convert.to_experiment_message(created)
            return pb.CreateExperimentResponse(experiment=message)

    async def GetExperiment(
        self, request: pb.GetExperimentRequest, context: Context
    ) -> pb.GetExperimentResponse:
        async with reported(context):
            found = await self._experiments.get(caller(), request.name, _version(request))
            message = convert.to_experiment_message(found)
            return pb.GetExperimentResponse(experiment=message)

    async def ListExperiments(
        self, request: pb.ListExperimentsRequest, context: Context
    ) -> pb.ListExperimentsResponse:
        async with reported(context):
            known = await self._experiments.all(caller())
            messages = map(convert.to_experiment_message, known)
            return pb.ListExperimentsResponse(experiments=messages)

    async def StartExperiment(
        self, request: pb.StartExperimentRequest, context: Context
    ) -> pb.StartExperimentResponse:
        async with reported(context) as request_id:
            started = await self._experiments.start(caller(), request.name, request_id)
            message = convert.to_experiment_message(started)
            return pb.StartExperimentResponse(experiment=message)

    async def RampExperiment(
        self, request: pb.RampExperimentRequest, context: Context
    ) -> pb.RampExperimentResponse:
        async with reported(context) as request_id:
            ramped = await self._experiments.ramp(
                caller(), request.name, request.percent, request_id, _version(request)
            )
            message = convert.to_experiment_message(ramped)
            return pb.RampExperimentResponse(experiment=message)

    async def StopExperiment(
        self, request: pb.StopExperimentRequest, context: Context
    ) -> pb.StopExperimentResponse:
        async with reported(context) as request_id:
            stopped = await self._experiments.stop(
                caller(), request.name, request_id, arm=request.arm, why=request.why
            )
            message = convert.to_experiment_message(stopped)
            return pb.StopExperimentResponse(experiment=message)

    async def PromoteExperiment(
        self, request: pb.PromoteExperimentRequest, context: Context
    ) -> pb.PromoteExperimentResponse:
        async with reported(context) as request_id:
            winner = (request.arm, request.mix_name)
            promoted = await self._experiments.promote(
                caller(), request.name, winner, request_id, _version(request)
            )
            message = convert.to_experiment_message(promoted)
            return pb.PromoteExperimentResponse(experiment=message)

    async def RollbackExperiment(
        self, request: pb.RollbackExperimentRequest, context: Context
    ) -> pb.RollbackExperimentResponse:
        async with reported(context) as request_id:
            undone = await self._experiments.rollback(
                caller(), request.name, request_id, _version(request)
            )
            message = convert.to_experiment_message(undone)
            return pb.RollbackExperimentResponse(experiment=message)

    async def RecordOutcomes(
        self, request: pb.RecordOutcomesRequest, context: Context
    ) -> pb.RecordOutcomesResponse:
        async with reported(context):
            check_count(len(request.outcomes), MAX_OUTCOMES, "outcomes")
            outcomes = [convert.to_outcome(outcome) for outcome in request.outcomes]
            recorded = await self._experiments.record(caller(), request.experiment, outcomes)
            return pb.RecordOutcomesResponse(num_new=recorded.num_new, num_known=recorded.num_known)

    async def GetResults(
        self, request: pb.GetResultsRequest, context: Context
    ) -> pb.GetResultsResponse:
        async with reported(context):
            alpha = request.alpha if request.HasField("alpha") else ALPHA
            found = await self._experiments.results(
                caller(), request.name, _version(request), tuple(request.ratios), alpha
            )
            return to_results_message(found)


_Versioned = (
    pb.GetExperimentRequest
    | pb.RampExperimentRequest
    | pb.PromoteExperimentRequest
    | pb.RollbackExperimentRequest
    | pb.GetResultsRequest
)


def _version(request: _Versioned) -> int | None:
    return request.version if request.HasField("version") else None
