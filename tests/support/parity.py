"""Answers of a served mix beside those of its merged checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from taskmix_composer.mix import Mix
from tests.support.inprocess import InProcessEngine
from tests.support.merged import greedy, merged_model

NUM_TOKENS = 16

# float32 sums of a few hundred products in another order, through three layers; the largest
# difference seen is 2e-5.
LOGPROB_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Oracle:
    """Merged checkpoints of a bank's mixes, each made once, under `folder`."""

    base: Path
    bank: Path
    folder: Path
    models: dict[Mix, PreTrainedModel]

    def check(self, engine: InProcessEngine, mixes: list[Mix], prompts: list[list[int]]) -> None:
        """Answer all prompts in one batch, and compare each answer with its oracle's."""
        answers = engine.greedy(mixes, prompts, NUM_TOKENS)
        for mix, prompt, answer in zip(mixes, prompts, answers, strict=True):
            tokens, logprobs = greedy(self._merged(mix), prompt, NUM_TOKENS)
            assert answer.tokens == tokens, f"{mix} answers otherwise than its merged checkpoint"
            torch.testing.assert_close(
                torch.tensor(answer.logprobs),
                torch.tensor(logprobs),
                rtol=0.0,
                atol=LOGPROB_TOLERANCE,
            )

    def _merged(self, mix: Mix) -> PreTrainedModel:
        if mix not in self.models:
            out = self.folder / f"merged-{len(self.models)}"
            self.models[mix] = merged_model(self.bank, self.base, mix, out)
        return self.models[mix]


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length,), generator=generator).tolist()
