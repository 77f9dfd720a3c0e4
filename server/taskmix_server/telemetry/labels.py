"""Values of metrics' labels, bounded: each new value is a new set of series, for ever."""

DEFAULT_TENANT = "default"
"""The tenant of every request where no tenants are configured."""

BASE = "base"
INLINE = "inline"
OTHER = "other"
"""Labels that stand for the base alone, for every ad-hoc mix, and for what came after the limit."""

MAX_TENANTS = 50
MAX_MIXES = 100
MAX_TASKS = 200
MAX_ARMS = 200
MAX_PAIRS = 400


class LabelValues:
    """The first `max_values` values keep their names; every later one is `OTHER`."""

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._known: set[str] = set()

    def bounded(self, value: str) -> str:
        """The value, or `OTHER`."""
        if value not in self._known:
            if len(self._known) >= self._max_values:
                return OTHER
            self._known.add(value)
        return value


class LabelPairs:
    """Tenants and mixes: each bounded, and the pairs of them that have series of their own.

    Alone the two bounds would allow their product.
    """

    def __init__(
        self,
        max_tenants: int = MAX_TENANTS,
        max_mixes: int = MAX_MIXES,
        max_pairs: int = MAX_PAIRS,
    ) -> None:
        self.tenants = LabelValues(max_tenants)
        self._mixes = LabelValues(max_mixes)
        self._max_pairs = max_pairs
        self._known: set[tuple[str, str]] = set()

    def bounded(self, tenant: str, mix: str) -> tuple[str, str]:
        """The pair, its mix as `OTHER` once there are too many pairs, each part within its own
        bound."""
        pair = self.tenants.bounded(tenant), self._mixes.bounded(mix)
        if pair not in self._known:
            if len(self._known) >= self._max_pairs:
                return pair[0], OTHER
            self._known.add(pair)
        return pair
