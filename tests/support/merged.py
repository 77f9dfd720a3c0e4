"""The oracle: the checkpoint that `taskmix export` writes, run by transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from taskmix_composer.bank.reader import Bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.export import export_checkpoint
from taskmix_composer.mix import Mix


def merged_model(
    bank: Path, base: Path, mix: Mix, out: Path, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The weights of a mix as it is served, exported in `dtype` and loaded in it."""
    opened, checkpoint = Bank.open(bank), Checkpoint.open(base)
    export_checkpoint(opened, checkpoint, mix, out, dtype, is_as_served=True)
    return AutoModelForCausalLM.from_pretrained(out, dtype=dtype).eval()


@torch.no_grad()
def greedy(
    model: PreTrainedModel, prompt: Sequence[int], num_tokens: int
) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities, without a cache."""
    ids = list(prompt)
    logprobs = []
    for _ in range(num_tokens):
        scores = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        token = int(scores.argmax())
        logprobs.append(float(scores[token]))
        ids.append(token)
    return ids[len(prompt) :], logprobs


@torch.no_grad()
def forced_logprobs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Log-probabilities of given answers of one length after their prompts: [answers, tokens].

    Rows are padded on the right, where a causal model cannot see it.
    """
    rows = [
        torch.tensor([*prompt, *answer]) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hidden = model.base_model(ids).last_hidden_state
    logprobs = []
    for row, prompt, answer in zip(hidden, prompts, answers, strict=True):
        before = slice(len(prompt) - 1, len(prompt) - 1 + len(answer))
        scores = model.lm_head(row[before]).float().log_softmax(-1)
        logprobs.append(scores.gather(1, torch.tensor(answer)[:, None])[:, 0])
    return torch.stack(logprobs)
