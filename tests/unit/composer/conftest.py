"""A base model, fine-tunes of it, and a bank of them."""

from pathlib import Path

import pytest

from taskmix_composer.build import build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms
from tests.unit.composer.models import (
    make_factors,
    make_weights,
    save_adapter,
    save_model,
    tuned,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A bfloat16 model directory with a tied head."""
    return save_model(tmp_path / "base", make_weights())


@pytest.fixture
def math(tmp_path: Path) -> Path:
    """A full fine-tune of the base."""
    return save_model(tmp_path / "math-model", tuned(make_weights(), seed=1))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Another full fine-tune of the base."""
    return save_model(tmp_path / "code-model", tuned(make_weights(), seed=2))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA adapter of the base."""
    return save_adapter(tmp_path / "adapter", make_factors())


@pytest.fixture
def bank(tmp_path: Path, base: Path, math: Path, code: Path) -> Path:
    """A dense bank of both fine-tunes."""
    path = tmp_path / "bank"
    build_bank(base, {"math": math, "code": code}, Forms(Scheme("dense")), path)
    return path
