"""Fair shares: a virtual counter per tenant of what it was served.

Virtual token counters of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024):
whoever was served least, by its weight, is served next. A request is charged when it starts, with
the output that its tenant's requests had so far, and corrected when it has ended.
"""

from dataclasses import dataclass

FIRST_OUTPUT = 128.0
"""Tokens of output that are expected of a tenant's first request, where it may have as many."""

_SMOOTHING = 1 / 8


@dataclass(slots=True)
class _Account:
    counter: float
    mean_output: float = FIRST_OUTPUT


@dataclass(frozen=True, slots=True)
class Cost:
    """How tokens of a request count: `per_token` of them for each, for a tenant of `weight`."""

    per_token: float = 1.0
    weight: float = 1.0

    def of(self, num_tokens: float) -> float:
        """What tokens add to a tenant's counter."""
        return num_tokens * self.per_token / self.weight


class Shares:
    """The counters of all tenants, by a key. `time` is the counter of who was served last."""

    def __init__(self) -> None:
        self.time = 0.0
        self._accounts: dict[str, _Account] = {}

    def counter(self, tenant: str) -> float:
        """What a tenant was served, in tokens of weight 1."""
        return self._account(tenant).counter

    def enter(self, tenant: str) -> None:
        """A tenant that had nothing waiting asks: what it left unused is gone."""
        account = self._account(tenant)
        account.counter = max(account.counter, self.time)

    def expected_output(self, tenant: str, max_tokens: int) -> float:
        """Tokens that an answer of this tenant probably has."""
        return min(float(max_tokens), self._account(tenant).mean_output)

    def serve(self, tenant: str, charge: float) -> float:
        """Charge a tenant whose request starts; returns where its counter was before."""
        account = self._account(tenant)
        start = account.counter
        self.time = max(self.time, start)
        account.counter = start + charge
        return start

    def correct(self, tenant: str, difference: float) -> None:
        """Add what a request cost beyond what it was charged; negative if it cost less."""
        self._account(tenant).counter += difference

    def learn_output(self, tenant: str, num_tokens: float) -> None:
        """Take in the length of an answer."""
        account = self._account(tenant)
        account.mean_output += _SMOOTHING * (num_tokens - account.mean_output)

    def _account(self, tenant: str) -> _Account:
        return self._accounts.setdefault(tenant, _Account(self.time))
