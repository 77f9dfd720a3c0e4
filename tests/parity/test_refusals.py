"""What the engine cannot mix is refused by name, before it could answer wrongly."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm

from taskmix_composer.build import build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms
from taskmix_server.engine.vllm import compat
from taskmix_server.engine.vllm.cache import DeltaCache
from taskmix_server.engine.vllm.config import check_config
from taskmix_server.engine.vllm.deltas import DeltaArranger, TensorTable
from taskmix_server.engine.vllm.sites import Part, Site, SiteKind
from taskmix_server.errors import EngineIncompatibleError, UnsupportedModelError
from tests.support.tiny import TinyModel, make_base, make_finetune

pytestmark = pytest.mark.filterwarnings("default")


def test_a_task_that_changes_a_tensor_no_site_takes_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", TinyModel(num_layers=1))
    source = make_finetune(base, tmp_path / "a", seed=1, only="mlp.down_proj")
    bank = build_bank(base, {"a": source}, Forms(Scheme("dense")), tmp_path / "bank")
    attention = Part("model.layers.0.self_attn.o_proj", 0, 128)
    sites = (Site("o_proj", SiteKind.LINEAR, (attention,), torch.nn.Identity()),)
    table = TensorTable.of(bank.base.tensors)
    arranger = DeltaArranger(sites, table, torch.float32, torch.device("cpu"), DeltaCache(0))
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.mlp\.down_proj\.weight"):
        arranger.check_covered("a", bank.entry("a").tensors)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("use_mla", True, "latent attention"),
        ("speculative_config", object(), "speculative decoding"),
        ("enforce_eager", False, "--enforce-eager"),
        ("tensor_parallel_size", 2, "one device"),
        ("pipeline_parallel_size", 2, "one device"),
    ],
)
def test_configurations_that_deltas_cannot_be_added_to_are_refused(
    setting: str, value: Any, reason: str
) -> None:
    settings = {
        "use_mla": False,
        "speculative_config": None,
        "enforce_eager": True,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
    }
    check_config(config_of(**settings))
    with pytest.raises(UnsupportedModelError, match=reason):
        check_config(config_of(**{**settings, setting: value}))


def test_an_untried_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compat.check()
    monkeypatch.setattr(vllm, "__version__", "0.33.0")
    with pytest.raises(EngineIncompatibleError, match=r"0\.33\.0"):
        compat.check()


def config_of(**settings: Any) -> SimpleNamespace:
    return SimpleNamespace(
        model_config=SimpleNamespace(
            use_mla=settings["use_mla"], enforce_eager=settings["enforce_eager"]
        ),
        speculative_config=settings["speculative_config"],
        parallel_config=SimpleNamespace(
            tensor_parallel_size=settings["tensor_parallel_size"],
            pipeline_parallel_size=settings["pipeline_parallel_size"],
        ),
    )
