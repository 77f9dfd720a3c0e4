"""The worker's side of a mix: takes the place of vLLM's LoRA manager on its carrier.

vLLM moves a LoRA id per request from scheduler to worker and keys its prefix cache by the LoRA's
name and path. `MixManager` answers the calls that the model runners make of a LoRA manager, but
an id stands for a mix: a row of coefficients over loaded tasks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskmix_composer.bank import Bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.errors import BaseMismatchError
from taskmix_composer.identity import DigestCache
from taskmix_composer.mix import Mix, Term
from taskmix_server.engine.config import DELTA_CACHE_BYTES
from taskmix_server.engine.vllm import compat
from taskmix_server.engine.vllm.cache import DeltaCache
from taskmix_server.engine.vllm.coded import CodedLoader
from taskmix_server.engine.vllm.config import check_config
from taskmix_server.engine.vllm.deltas import DeltaArranger, Masks, TensorTable
from taskmix_server.engine.vllm.layers import CurrentStep, wrap
from taskmix_server.engine.vllm.sites import find_sites
from taskmix_server.engine.vllm.steps import IDLE, NO_TASKS, ResidentVariant, plan_step
from taskmix_server.engine.vllm.store import DeltaStore, TermKey
from taskmix_server.errors import FailedPreconditionError


class MixManager:
    """Loaded tasks and registered mixes of one worker, and the step that its layers read."""

    def __init__(self, bank: Bank, store: DeltaStore, current: CurrentStep) -> None:
        self._bank = bank
        self._store = store
        self._current = current
        self._variants: dict[str, ResidentVariant] = {}  # by the path of their LoRA request
        self._step = IDLE
        self._last: tuple[Any, ...] = ()  # what `_step` was planned from

    @classmethod
    def attach(
        cls, model: nn.Module, vllm_config: Any, device: torch.device, settings: Mapping[str, Any]
    ) -> "MixManager":
        """Wrap the model's layers.

        `settings` is the `taskmix` part of vLLM's `additional_config`: `bank`, a directory, and
        optionally `digest_cache`, a file that spares hashing the base again, and
        `delta_cache_memory`, bytes for dense forms of coded deltas.
        """
        check_config(vllm_config)
        bank = Bank.open(Path(settings["bank"]))
        base = Checkpoint.open(Path(vllm_config.model_config.model))
        digests = settings.get("digest_cache")
        bank.check_base(base, DigestCache(Path(digests)) if digests else None)
        cache = DeltaCache(_cache_bytes(settings))
        tied_head = bool(getattr(vllm_config.model_config.hf_config, "tie_word_embeddings", False))
        sites = find_sites(model, tied_head=tied_head)
        current = CurrentStep()
        for site in sites:
            wrap(site, current)
        dtype = vllm_config.model_config.dtype
        table = TensorTable.of(bank.base.tensors)
        arranger = DeltaArranger(sites, table, dtype, device, cache)
        return cls(bank, DeltaStore(CodedLoader(base, dtype), arranger, cache), current)

    # What taskmix asks of a worker

    def load_task(self, name: str, digest: str) -> int:
        """Hold a task's deltas from the bank as it is now; returns the bytes they take.

        A shared vector's bytes are not among them. Raises FailedPreconditionError if the bank no
        longer holds that content.
        """
        if not self._store.holds_task(digest):
            bank = self._reopened()
            if bank.entry(name).digest != digest:
                raise FailedPreconditionError(
                    f"task {name!r} changed in the bank while it was being loaded; load it again"
                )
            self._store.load_task(bank, name)
        return self._store.task_bytes(digest)

    def unload_task(self, digest: str) -> None:
        """Let go of a task's deltas; mixes that name it must have been forgotten before."""
        self._store.unload_task(digest)
        self._step, self._last = IDLE, ()  # the last step's plan held them too
        self._current.begin(IDLE)

    def register(
        self, path: str, mix: Mix, digests: Mapping[str, str], planes: Mapping[str, str]
    ) -> None:
        """Make a mix servable under a LoRA path.

        `digests` and `planes` say which content each task and plane means. Two names may mean
        equal content: where their masks are equal too, their coefficients add.
        """
        columns = tuple(self._store.arranger.table.columns)
        totals: dict[TermKey, Tensor] = {}
        for term in mix.terms:
            coefficients = torch.tensor(term.coefficients_for(columns), dtype=torch.float64)
            key = (digests[term.task], _masks(term, planes))
            totals[key] = totals.get(key, torch.zeros_like(coefficients)) + coefficients
        try:
            self._load_planes(planes)
            self._variants[path] = ResidentVariant(
                tuple((self._store.term(*key), total.float()) for key, total in totals.items())
            )
        finally:
            self._drop_unused_planes()

    def forget(self, path: str) -> None:
        """Drop a mix that no request in flight uses, and planes that no other mix uses."""
        self._variants.pop(path, None)
        self._drop_unused_planes()

    def memory(self) -> dict[str, int]:
        """What deltas take in this worker; see `DeltaStore.memory`."""
        return self._store.memory()

    # What vLLM's model runners ask of a LoRA manager

    def add_adapter(self, request: compat.LoRARequest) -> bool:
        """Under plain `vllm serve` a path is a MIX; its tasks are loaded here, on first use.

        What a path means stays as it is until the process ends, whatever the bank does.
        """
        if request.lora_path in self._variants:
            return False
        mix = Mix.parse(request.lora_path)
        bank = self._reopened()
        bank.check_mix(mix)
        digests = {task: bank.entry(task).digest for task in mix.tasks}
        for task, digest in digests.items():
            self.load_task(task, digest)
        planes = {plane: bank.plane_digests[plane] for plane in mix.planes}
        self.register(request.lora_path, mix, digests, planes)
        return True

    def set_active_adapters(
        self, requests: set[compat.LoRARequest], mapping: compat.LoRAMapping
    ) -> None:
        """Plan the next forward pass. Steps that repeat the last batch's rows reuse its plan.

        A path that is not registered is a profiling run's, or a mix that was forgotten while its
        aborted requests were on their way out: nobody waits for those rows.
        """
        variants = {
            request.lora_int_id: self._variants.get(request.lora_path, NO_TASKS)
            for request in requests
        }
        key = (mapping.index_mapping, mapping.prompt_mapping, variants)
        if key != self._last:
            self._step = plan_step(*key, self._store.arranger.device)
        self._last = key
        self._current.begin(self._step)

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        """vLLM's profiling runs need no adapters here: a mix is a row, not memory."""
        yield

    def add_dummy_lora(self, request: compat.LoRARequest, rank: int) -> bool:
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    def remove_adapter(self, adapter_id: int) -> bool:
        return False

    def remove_all_adapters(self) -> None:
        """Called after profiling, when there is nothing of ours to remove."""

    def pin_adapter(self, adapter_id: int) -> bool:
        return True

    def list_adapters(self) -> set[int]:
        return set()

    def supports_tower_connector_lora(self) -> bool:
        return False

    def _load_planes(self, planes: Mapping[str, str]) -> None:
        missing = {name for name, digest in planes.items() if not self._store.holds_plane(digest)}
        if not missing:
            return
        bank = self._reopened()
        for name in sorted(missing):
            if bank.plane(name).digest != planes[name]:
                raise FailedPreconditionError(
                    f"plane {name!r} changed in the bank since it was read; load a task again "
                    "(`taskmix tasks load NAME`), which reads the bank anew"
                )
            self._store.load_plane(bank, name)

    def _drop_unused_planes(self) -> None:
        if self._store.has_planes:
            used = (task for variant in self._variants.values() for task, _ in variant.tasks)
            self._store.keep_masked({(task.digest, task.masks) for task in used})

    def _reopened(self) -> Bank:
        """The bank as its directory is now, still of the base that is being served."""
        bank = Bank.open(self._bank.path)
        if bank.base != self._bank.base:
            raise BaseMismatchError(
                f"{bank.path} now holds a bank of another base; restart with that base, or put "
                "the bank back"
            )
        return bank


def _masks(term: Term, planes: Mapping[str, str]) -> Masks:
    """A term's masks by their planes' digests."""
    named = ((mask.startswith("!"), planes[mask.removeprefix("!")]) for mask in term.masks)
    return tuple(sorted({f"!{digest}" if negated else digest for negated, digest in named}))


def _cache_bytes(settings: Mapping[str, Any]) -> int:
    given = settings.get("delta_cache_memory", DELTA_CACHE_BYTES)
    if not isinstance(given, int) or given < 0:
        raise FailedPreconditionError(
            f"delta_cache_memory must be a number of bytes, 0 or more, got {given!r}"
        )
    return given
