"""What each tensor of a fine-tune does to the answers to given prompts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.errors import CheckpointError
from taskmix_composer.taskvector import Source, read_delta

_FLOOR = 1e-4


def tensor_effects(
    base: Checkpoint, sources: Mapping[str, Source], prompts: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By task, how far each tensor's delta moves what the base predicts to what the task does.

    Measured is the divergence of the base's next token after a prompt from the task's. Half-way
    between the two models, its gradient times a tensor's delta is that tensor's share of the way
    (integrated gradients, arXiv 1703.01365, by the midpoint rule). Shares are at least a small
    part of the total: one that hinders on these prompts may help on others.
    """
    tokenizer = AutoTokenizer.from_pretrained(base.directory)
    model = AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32).eval()
    _check_names(model, base)
    tokens = [tokenizer(prompt, return_tensors="pt").input_ids for prompt in prompts]
    return {task: _effects(model, base, source, tokens) for task, source in sources.items()}


def _check_names(model: PreTrainedModel, base: Checkpoint) -> None:
    known = base.tensors.keys() | base.aliases.keys()
    unknown = [name for name, _ in model.named_parameters() if name not in known]
    if unknown:
        raise CheckpointError(
            f"{base.directory}: the model has {unknown[0]}, which its checkpoint stores under "
            "another name, so what single tensors do cannot be measured; plan without prompts"
        )


def _effects(
    model: PreTrainedModel, base: Checkpoint, source: Source, tokens: Sequence[Tensor]
) -> dict[str, float]:
    """Shares of one task; `model` has the base's shape and any weights."""
    _set_weights(model, base, source, 1.0)
    with torch.no_grad():
        answers = [model(prompt).logits[0, -1].softmax(dim=0) for prompt in tokens]
    _set_weights(model, base, source, 0.5)
    model.zero_grad()
    for prompt, answer in zip(tokens, answers, strict=True):
        loss = -(answer * model(prompt).logits[0, -1].log_softmax(dim=0)).sum()
        loss.backward()
    shares = {}
    for name, parameter in model.named_parameters():
        delta = read_delta(base, source, name)
        if delta is not None and parameter.grad is not None:
            shares[name] = -float((parameter.grad * delta).sum(dtype=torch.float64))
    floor = _FLOOR * sum(abs(share) for share in shares.values())
    return {name: max(share, floor) for name, share in shares.items()}


def _set_weights(model: PreTrainedModel, base: Checkpoint, source: Source, scale: float) -> None:
    """Give a model the base's weights with `scale` of a task's delta added."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            delta = read_delta(base, source, name)
            parameter.copy_(base.read(name))
            if delta is not None:
                parameter.add_(delta, alpha=scale)
