"""Running experiments, and who gets which of their arms."""

from taskmix_client import Arm, Client, Experiment, ExperimentDesign, Guardrail

SUBJECTS = [f"user-{number}" for number in range(40)]


def started(client: Client, name: str, *guardrails: Guardrail, **mixes: str) -> Experiment:
    """A running experiment with equal shares for its arms."""
    arms = tuple(Arm(arm, mix, 1 / len(mixes)) for arm, mix in mixes.items())
    client.create_experiment(ExperimentDesign(name, arms, guardrails=guardrails))
    return client.start_experiment(name)


def arms_of(client: Client, name: str) -> dict[str, str]:
    """The arm that answers each of the subjects."""
    return {
        subject: client.generate("x", experiment=name, subject=subject, max_tokens=1).arm
        for subject in SUBJECTS
    }
