"""What shadow arms need of a request, gathered while it is answered."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from taskmix_server.domain.generation import SamplingOptions


@dataclass(slots=True)
class Copy:
    """The first prompt of a request, how its answer was sampled, and the first answer to it.

    cache_salt: of the tenant that asked. prompt, tokens: token ids. is_whole: all of it is there.
    """

    cache_salt: str | None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    prompt: tuple[int, ...] = ()
    tokens: list[int] = field(default_factory=list)
    is_whole: bool = False

    def hear(self, new_tokens: Sequence[int]) -> None:
        """Take in tokens of the answer."""
        self.tokens += new_tokens

    def end(self, prompt: Sequence[int], sampling: SamplingOptions) -> None:
        """Take in what was asked, with the answer's end."""
        self.prompt, self.sampling, self.is_whole = tuple(prompt), sampling, True

    def agreement(self, tokens: Sequence[int]) -> float:
        """The share of leading tokens that a shadow's answer has in common, of the longer answer's;
        1 if both are empty."""
        longest = max(len(self.tokens), len(tokens))
        if not longest:
            return 1.0
        pairs = zip(self.tokens, tokens, strict=False)
        different = (place for place, (one, other) in enumerate(pairs) if one != other)
        return next(different, min(len(self.tokens), len(tokens))) / longest
