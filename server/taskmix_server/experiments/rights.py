"""For whom an experiment exists, and who may change it."""

from taskmix_server.errors import PermissionDeniedError
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.store import Check
from taskmix_server.experiments.versions import unknown
from taskmix_server.tenancy.principal import Principal


def exists_for(experiment: Experiment, principal: Principal) -> bool:
    """Whether a tenant may use every arm of it: what is not for a tenant is unknown to it."""
    if principal.tenant.is_admin:
        return True
    design = experiment.design
    return design.is_for(principal.name) and all(map(principal.may_use_task, design.tasks))


def seen_by(principal: Principal) -> Check:
    """Hides what does not exist for a tenant."""

    def check(experiment: Experiment) -> None:
        if not exists_for(experiment, principal):
            raise unknown(experiment.name)

    return check


def changed_by(principal: Principal) -> Check:
    """Lets admins change everything, and a tenant the experiments that are for it alone."""

    def check(experiment: Experiment) -> None:
        seen_by(principal)(experiment)
        if not principal.tenant.is_admin and experiment.design.tenants != (principal.name,):
            raise PermissionDeniedError(
                f"tenant {principal.name!r} may not change experiment {experiment.name!r}, which "
                "is for others too; ask an admin to do it"
            )

    return check
