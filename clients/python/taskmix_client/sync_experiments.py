"""The calls on experiments, blocking."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import grpc

from taskmix.v1 import experiments_pb2 as pb
from taskmix.v1 import experiments_pb2_grpc
from taskmix_client._experiments import to_create_request, to_experiment, to_record_request
from taskmix_client._results import to_results
from taskmix_client.experiments import Experiment, ExperimentDesign, Outcome, Recorded, Results

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class ExperimentCalls:
    """What a client does with experiments, over the client's own `_call`."""

    _experiments: experiments_pb2_grpc.ExperimentServiceStub

    def create_experiment(
        self,
        design: ExperimentDesign,
        *,
        ramp_percent: float | None = None,
        is_new_version: bool = False,
    ) -> Experiment:
        """Make a draft; `is_new_version` allows that the experiment exists."""
        request = to_create_request(design, ramp_percent, is_new_version=is_new_version)
        response = self._call(self._experiments.CreateExperiment, request)
        return to_experiment(response.experiment)

    def experiment(self, name: str, version: int | None = None) -> Experiment:
        """Look one version up, the newest one if none is named."""
        request = pb.GetExperimentRequest(name=name, version=version)
        response = self._call(self._experiments.GetExperiment, request)
        return to_experiment(response.experiment)

    def experiments(self) -> tuple[Experiment, ...]:
        """List the newest version of each experiment."""
        request = pb.ListExperimentsRequest()
        response = self._call(self._experiments.ListExperiments, request)
        return tuple(to_experiment(message) for message in response.experiments)

    def start_experiment(self, name: str) -> Experiment:
        """Let a draft take requests; the version that ran until then stops."""
        request = pb.StartExperimentRequest(name=name)
        response = self._call(self._experiments.StartExperiment, request)
        return to_experiment(response.experiment)

    def ramp_experiment(self, name: str, percent: float, version: int | None = None) -> Experiment:
        """Change the percentage of subjects that take part."""
        request = pb.RampExperimentRequest(name=name, percent=percent, version=version)
        response = self._call(self._experiments.RampExperiment, request)
        return to_experiment(response.experiment)

    def stop_experiment(self, name: str, *, arm: str = "", why: str = "") -> Experiment:
        """End the running version, or one arm of it."""
        request = pb.StopExperimentRequest(name=name, arm=arm, why=why)
        response = self._call(self._experiments.StopExperiment, request)
        return to_experiment(response.experiment)

    def promote_experiment(
        self, name: str, arm: str, mix_name: str, version: int | None = None
    ) -> Experiment:
        """Let a name mean an arm's mix, at once and whole."""
        request = pb.PromoteExperimentRequest(
            name=name, arm=arm, mix_name=mix_name, version=version
        )
        response = self._call(self._experiments.PromoteExperiment, request)
        return to_experiment(response.experiment)

    def rollback_experiment(self, name: str, version: int | None = None) -> Experiment:
        """Undo a promotion: the name means again what it meant before."""
        request = pb.RollbackExperimentRequest(name=name, version=version)
        response = self._call(self._experiments.RollbackExperiment, request)
        return to_experiment(response.experiment)

    def record_outcomes(self, experiment: str, outcomes: Iterable[Outcome]) -> Recorded:
        """Report outcomes, all or none; at most 1000 in a call."""
        request = to_record_request(experiment, outcomes)
        response = self._call(self._experiments.RecordOutcomes, request)
        return Recorded(response.num_new, response.num_known)

    def experiment_results(
        self,
        name: str,
        *,
        version: int | None = None,
        ratios: Sequence[str] = (),
        alpha: float | None = None,
    ) -> Results:
        """Read what a version tells; `ratios` adds metrics such as `clicks/views`."""
        request = pb.GetResultsRequest(name=name, version=version, ratios=ratios, alpha=alpha)
        return to_results(self._call(self._experiments.GetResults, request))

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        timeout_s: float | None = None,
    ) -> ResponseT:
        raise NotImplementedError
