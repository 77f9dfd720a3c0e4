"""Where a model can take a delta: its linears, embedding, head and norms, by checkpoint name."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from torch import nn

from taskmix_server.engine.vllm import compat
from taskmix_server.errors import UnsupportedModelError


class SiteKind(Enum):
    """How a module computes with its tensors."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    HEAD = "head"
    NORM = "norm"


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint module inside a (possibly fused) site: outputs [start, start + size)."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Site:
    """A module that can take deltas, and the checkpoint modules it is made of."""

    name: str
    kind: SiteKind
    parts: tuple[Part, ...]
    module: nn.Module

    @property
    def num_outputs(self) -> int:
        """Outputs of all parts; a vocabulary's padding comes after them."""
        return sum(part.size for part in self.parts)


def find_sites(model: nn.Module, *, tied_head: bool) -> tuple[Site, ...]:
    """List the sites of a dense decoder; a tied head is a second site of the embedding's tensor."""
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    found = []
    embedding = ""
    for name, module in model.named_modules():
        match module:
            case compat.ParallelLMHead():
                part = Part(embedding if tied_head else name, 0, module.org_vocab_size)
                found.append(Site(name, SiteKind.HEAD, (part,), module))
            case compat.VocabParallelEmbedding():
                embedding = name
                part = Part(name, 0, module.org_vocab_size)
                found.append(Site(name, SiteKind.EMBEDDING, (part,), module))
            case compat.LinearBase():
                _check_linear(name, module)
                parts = tuple(_linear_parts(name, module, packed))
                found.append(Site(name, SiteKind.LINEAR, parts, module))
            case _ if type(module) is compat.RMSNorm and module.has_weight:
                part = Part(name, 0, module.weight.shape[0])
                found.append(Site(name, SiteKind.NORM, (part,), module))
    return tuple(found)


def _check_linear(name: str, module: nn.Module) -> None:
    if getattr(module, "tp_size", 1) != 1:
        raise UnsupportedModelError(
            f"{name} is sharded over {module.tp_size} devices; "
            "taskmix serves with --tensor-parallel-size 1"
        )


def _linear_parts(name: str, module: nn.Module, packed: dict[str, list[str]]) -> Iterator[Part]:
    parent, _, leaf = name.rpartition(".")
    names = packed.get(leaf, [leaf])
    sizes = list(getattr(module, "output_sizes", None) or [module.output_size])
    if len(names) != len(sizes):
        names = [leaf]
        sizes = [sum(sizes)]
    start = 0
    for part, size in zip(names, sizes, strict=True):
        yield Part(f"{parent}.{part}" if parent else part, start, int(size))
        start += int(size)
