"""The worker's side of a mix: takes the place of vLLM's LoRA manager on its carrier.

vLLM moves a LoRA id per request from scheduler to worker and keys its prefix cache by the LoRA's
name and path. `MixManager` answers the calls that the model runners make of a LoRA manager, but
an id stands for a mix: a row of coefficients over loaded tasks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskmix_composer.bank import Bank
from taskmix_composer.bank.latest import LatestBank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.identity import DigestCache
from taskmix_composer.kernels.ops import select
from taskmix_composer.mix import Mix, Term
from taskmix_composer.recipe import expanded, parse_mix
from taskmix_server.engine.vllm import compat
from taskmix_server.engine.vllm.background import Background, Install, Prepare
from taskmix_server.engine.vllm.cache import DeltaCache
from taskmix_server.engine.vllm.carriers import is_shadow
from taskmix_server.engine.vllm.coded import CodedLoader
from taskmix_server.engine.vllm.config import check_config
from taskmix_server.engine.vllm.deltas import DeltaArranger, MaskedTask, Masks, TensorTable
from taskmix_server.engine.vllm.layers import CurrentStep, wrap
from taskmix_server.engine.vllm.loading import Held, LoadedTask, TaskLoader
from taskmix_server.engine.vllm.merged import PATHS, MergedWeights, mergeable
from taskmix_server.engine.vllm.sites import find_sites
from taskmix_server.engine.vllm.slots import Slots
from taskmix_server.engine.vllm.starting import cache_bytes, costs_of, kernel_of, tables_of
from taskmix_server.engine.vllm.steps import IDLE, NO_TASKS, Planner, ResidentVariant
from taskmix_server.engine.vllm.store import DeltaStore, TermKey
from taskmix_server.errors import FailedPreconditionError


class MixManager:
    """Loaded tasks and registered mixes of one worker, and the step that its layers read."""

    def __init__(
        self, bank: LatestBank, store: DeltaStore, merged: MergedWeights, current: CurrentStep
    ) -> None:
        self._bank = bank
        self._store = store
        self._merged = merged
        self._current = current
        self._changes = Background()
        self._num_steps = dict.fromkeys(PATHS, 0)
        self._variants: dict[str, ResidentVariant] = {}  # by the path of their LoRA request
        self._step = IDLE
        self._last: tuple[Any, ...] = ()  # what `_step` was planned from

    @classmethod
    def attach(
        cls, model: nn.Module, vllm_config: Any, device: torch.device, settings: Mapping[str, Any]
    ) -> "MixManager":
        """Wrap the model's layers.

        `settings` is the `taskmix` part of vLLM's `additional_config`: `bank`, a directory, and
        optionally `digest_cache` and `cost_cache`, files that spare hashing the base and measuring
        the machine again, `delta_cache_memory`, bytes for dense forms of deltas, `kernel`, and
        `device_slots`, a number of tasks.
        """
        check_config(vllm_config)
        bank = Bank.open(Path(settings["bank"]))
        base = Checkpoint.open(Path(vllm_config.model_config.model))
        digests = settings.get("digest_cache")
        bank.check_base(base, DigestCache(Path(digests)) if digests else None)
        cache = DeltaCache(cache_bytes(settings))
        tied_head = bool(getattr(vllm_config.model_config.hf_config, "tie_word_embeddings", False))
        sites = find_sites(model, tied_head=tied_head)
        dtype = vllm_config.model_config.dtype
        costs = costs_of(sites, dtype, device, settings)
        merged = MergedWeights(mergeable(sites), base, dtype, cache, costs)
        kernel = kernel_of(settings, dtype, device)
        is_native = kernel == "native"
        tables = tables_of(bank, sites, device, settings) if kernel == "triton" else None
        current = CurrentStep()
        for site in sites:
            wrap(site, current, merged, is_native=is_native)
        table = TensorTable.of(bank.base.tensors)
        arranger = DeltaArranger(sites, table, dtype, device, cache, tables)
        loader = TaskLoader(CodedLoader(base, dtype, is_packing=is_native), arranger)
        return cls(LatestBank(bank), DeltaStore(loader, cache), merged, current)

    # What taskmix asks of a worker

    def begin_load(self, name: str, digest: str) -> None:
        """Start to read a task's deltas from the bank as it is now, beside the model.

        `finish` holds them. Raises FailedPreconditionError there if the bank no longer has that
        content.
        """
        self._changes.begin(self._load(name, digest))

    def begin_unload(self, digest: str) -> None:
        """Start to make what steps read without a task; `finish` lets go of its deltas.

        Mixes that name it must have been forgotten before.
        """
        self._changes.begin(partial(self._without, digest, self._store.terms_without(digest)))

    def finish(self) -> int | None:
        """Make the change that was begun; None while it is not ready.

        Returns the bytes that the task takes then, without those of a vector that it shares.
        """
        return self._changes.finish()

    def register(
        self, path: str, mix: Mix, digests: Mapping[str, str], planes: Mapping[str, str]
    ) -> None:
        """Make a mix servable under a LoRA path.

        `digests` and `planes` say which content each task and plane means. Two names may mean
        equal content: where their masks are equal too, their coefficients add.
        """
        columns = tuple(self._store.loader.arranger.table.columns)
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
        variant = self._variants.pop(path, None)
        if variant is not None:
            self._merged.forget(variant)
        self._drop_unused_planes()

    def memory(self) -> dict[str, int]:
        """What deltas take in this worker; see `DeltaStore.memory`."""
        steps = {f"steps_{path}": count for path, count in self._num_steps.items()}
        return {**self._store.memory(), "merges": self._merged.num_merges, **steps}

    # What vLLM's model runners ask of a LoRA manager

    def add_adapter(self, request: compat.LoRARequest) -> bool:
        """Under plain `vllm serve` a path is a MIX; its tasks are loaded here, on first use.

        A method is expanded from the bank as it is then. What a path means stays as it is until
        the process ends, whatever the bank does.
        """
        if request.lora_path in self._variants:
            return False
        bank = self._bank.open()
        mix = expanded(parse_mix(request.lora_path), bank)
        bank.check_mix(mix)
        digests = {task: bank.entry(task).digest for task in mix.tasks}
        for task, digest in digests.items():
            self._load(task, digest)()()
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
            self._step = self._planner().step(*key)
        self._last = key
        path = self._merged.begin(self._step.tokens, may_merge=not any(map(is_shadow, requests)))
        self._num_steps[path] += 1
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

    def _load(self, name: str, digest: str) -> Prepare:
        """How to make a task ready to be held."""
        if self._store.holds_task(digest):
            return lambda: partial(self._store.task_bytes, digest)
        return partial(self._loaded, name, digest, self._store.held())

    def _loaded(self, name: str, digest: str, held: Held) -> Install:
        bank = self._bank.open()
        if bank.entry(name).digest != digest:
            raise FailedPreconditionError(
                f"task {name!r} changed in the bank while it was being loaded; load it again"
            )
        return partial(self._hold, self._store.loader.load(bank, name, held))

    def _hold(self, loaded: LoadedTask) -> int:
        self._store.install(loaded)
        return self._store.task_bytes(loaded.task.digest)

    def _without(self, digest: str, terms: tuple[MaskedTask, ...]) -> Install:
        return partial(self._let_go, digest, self._store.loader.slots(terms))

    def _let_go(self, digest: str, slots: Slots) -> int:
        self._store.unload_task(digest, slots)
        self._step, self._last = IDLE, ()  # the last step's plan held them too
        self._current.begin(IDLE)
        return 0

    def _planner(self) -> Planner:
        arranger = self._store.loader.arranger
        ops = None if arranger.tables is None else select("triton")
        return Planner(len(arranger.table.columns), arranger.device, self._store.slots(), ops)

    def _load_planes(self, planes: Mapping[str, str]) -> None:
        missing = {name for name, digest in planes.items() if not self._store.holds_plane(digest)}
        if not missing:
            return
        bank = self._bank.open()
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


def _masks(term: Term, planes: Mapping[str, str]) -> Masks:
    """A term's masks by their planes' digests."""
    named = ((mask.startswith("!"), planes[mask.removeprefix("!")]) for mask in term.masks)
    return tuple(sorted({f"!{digest}" if negated else digest for negated, digest in named}))
