from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_composer.bank.writer import write_content
from taskmix_composer.build import open_source
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.measure import (
    CANDIDATES,
    SHARD_BYTES,
    TABLE_CANDIDATES,
    VECTOR,
    Probes,
    measure_delta,
    measure_task,
    stored_bytes,
)
from taskmix_composer.progress import Meter
from taskmix_composer.quant import decode, encode
from tests.unit.composer.models import DOWN, EMBEDDING, NORM, QUERY


def learnt(rows: int = 48, columns: int = 96) -> Tensor:
    """A delta as fine-tuning leaves it: a few strong directions and weaker ones besides."""
    generator = torch.Generator().manual_seed(5)
    left = torch.randn(rows, 4, generator=generator)
    right = torch.randn(4, columns, generator=generator)
    return 1e-3 * (left @ right + 0.3 * torch.randn(rows, columns, generator=generator))


def test_the_probes_measure_the_mean_of_gradient_times_error_times_input() -> None:
    delta, error = learnt().double(), 0.1 * learnt(48, 96).roll(1, dims=0).double()
    # E (g . E x) ** 2 over g = D a and x = b D with independent normal a and b.
    expected = float((delta.T @ error @ delta.T).square().sum())
    whole = float((delta.T @ delta @ delta.T).square().sum())
    probes = Probes.of_layer(delta.float())
    measured = probes.effect(error.float()) / probes.effect(delta.float())
    assert measured == pytest.approx(expected / whole, rel=0.25)


def test_an_error_across_what_was_learnt_counts_less_than_one_along_it() -> None:
    delta = learnt()
    probes = Probes.of_layer(delta)
    noise = torch.randn(delta.shape, generator=torch.Generator().manual_seed(6))
    along = 0.5 * delta
    across = noise * (along.norm() / noise.norm())
    assert probes.effect(across) < 0.1 * probes.effect(along)
    assert probes.effect(along) == pytest.approx(0.25 * probes.effect(delta))


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_shares_do_not_depend_on_the_size_of_a_delta(size: float) -> None:
    measured, scaled = (measure_delta("w", factor * learnt()) for factor in (1.0, size))
    shares = [choice.error for choice in measured.choices]
    assert [choice.error for choice in scaled.choices] == pytest.approx(shares, rel=0.05)
    assert scaled.norm == pytest.approx(size * measured.norm)


def test_a_matrix_has_every_candidate_and_may_be_left_out() -> None:
    delta = learnt()
    measured = measure_delta("w", delta)
    assert [choice.scheme for choice in measured.choices] == [None, *CANDIDATES]
    assert (measured.choices[0].num_bytes, measured.choices[0].error) == (0, 1.0)
    probes = Probes.of_layer(delta)
    for choice in measured.choices[1:]:
        assert choice.scheme is not None
        encoded = encode(delta, choice.scheme)
        assert choice.num_bytes == stored_bytes("w", encoded)
        lost = probes.effect(decode(encoded) - delta) / probes.effect(delta)
        assert choice.error == pytest.approx(lost, rel=1e-3)
    by_scheme = {choice.scheme: choice.error for choice in measured.choices}
    assert by_scheme[Scheme("int4")] < by_scheme[Scheme("int3")] < by_scheme[Scheme("int2")] < 0.1


def test_rows_of_a_table_count_each_by_itself() -> None:
    delta, error = learnt(), 0.1 * learnt().roll(1, dims=0)
    # E |E x| ** 2 over x = b D with independent normal b.
    expected = float((error @ delta.T).square().sum() / (delta @ delta.T).square().sum())
    probes = Probes.of_table(delta)
    assert probes.effect(error) / probes.effect(delta) == pytest.approx(expected, rel=0.25)

    measured = measure_delta(EMBEDDING, delta)
    assert [choice.scheme for choice in measured.choices] == [None, *TABLE_CANDIDATES]
    lost = {choice.scheme: choice.error for choice in measured.choices}
    scheme = Scheme.parse("sparse(density=0.05)")
    as_layer = {choice.scheme: choice.error for choice in measure_delta("w", delta).choices}
    assert lost[scheme] > 2 * as_layer[scheme]


def test_a_vector_is_kept() -> None:
    measured = measure_delta("norm", torch.tensor([0.5, 0.0, -0.25]))
    assert [choice.scheme for choice in measured.choices] == [VECTOR]
    assert not measured.is_lossy


@pytest.mark.parametrize("text", ["sparse(density=0.05)", "lowrank(rank=1)", "int2", "dense16"])
def test_stored_bytes_are_those_of_a_shard(text: str, tmp_path: Path) -> None:
    names = [f"model.layers.{index}.weight" for index in range(30)]
    encoded = encode(learnt(), Scheme.parse(text))
    content = write_content(tmp_path, "t", ((name, encoded) for name in names))
    predicted = SHARD_BYTES + sum(stored_bytes(name, encoded) for name in names)
    actual = content.shard.num_bytes
    assert actual <= predicted
    # Offsets are written as if they had more digits: two of them for each of at most four parts.
    assert predicted - actual <= SHARD_BYTES + 30 * 4 * 2 * 12


def test_a_task_is_measured_tensor_by_tensor(base: Path, math: Path) -> None:
    checkpoint = Checkpoint.open(base)
    done: list[int] = []
    meter = Meter(lambda parameters, _: done.append(parameters), checkpoint.num_parameters)
    measured = dict(measure_task(checkpoint, open_source(checkpoint, math), meter))
    assert measured.keys() == {EMBEDDING, QUERY, DOWN, NORM}
    assert [name for name, own in measured.items() if not own.is_lossy] == [NORM]
    assert done[-1] == checkpoint.num_parameters


def test_an_adapter_is_kept_as_it_is(base: Path, adapter: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(base)
    measured = dict(measure_task(checkpoint, open_source(checkpoint, adapter), Meter(None, 0)))
    assert measured.keys() == {QUERY}
    (only,) = measured[QUERY].choices
    assert only.error == 0.0
    assert only.num_bytes > 2 * 20 * 2 * 4  # two float32 factors of rank 2
