"""Set-bound schemes against their formulas, written out here in float64 over whole vectors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_composer import setbound
from taskmix_composer.bank import Bank, EncodedDelta
from taskmix_composer.build import build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.errors import BankFormatError
from taskmix_composer.forms import Forms
from taskmix_composer.quant import decode, encode
from taskmix_composer.quant.masked import unpacked_mask
from tests.unit.composer.models import (
    DOWN,
    EMBEDDING,
    NORM,
    QUERY,
    make_factors,
    make_weights,
    save_adapter,
    save_model,
    tuned,
)

WEIGHTS = make_weights()
MATRICES = (EMBEDDING, QUERY, DOWN)
MODELS = {task: tuned(WEIGHTS, seed) for seed, task in enumerate(("math", "code", "law"), start=1)}
# Codes are chosen in float32, and a float16 scale is at most 2**-10 above the one it stands for.
ROUNDING = 1 + 1e-4
SCALE_ROUNDING = 1 + 2.0**-10
SET_BOUND = ("rtvq(base=3,offset=2)", "tall(mtl=4)", "emr(mtl=4)")

Models = dict[str, dict[str, Tensor]]


def vectors(models: Models, name: str) -> Tensor:
    """The task vectors of one tensor, float64 [tasks, *shape]."""
    return torch.stack(
        [(model[name].float() - WEIGHTS[name].float()).double() for model in models.values()]
    )


def built(root: Path, scheme: str, models: Models = MODELS, **forms: object) -> Bank:
    """A bank of these models in `root`."""
    base = save_model(root / "base", WEIGHTS)
    sources = {task: save_model(root / f"{task}-model", model) for task, model in models.items()}
    return build_bank(base, sources, replace(Forms.parse(scheme), **forms), root / "set")


def shared_delta(bank: Bank, name: str) -> EncodedDelta:
    (digest,) = bank.manifest.shared
    encoded = bank.read_shared(digest, name)
    assert encoded is not None
    return encoded


def shared_values(bank: Bank, name: str) -> Tensor:
    """What the shared vector decodes to, float64."""
    return decode(shared_delta(bank, name)).double()


def steps(encoded: EncodedDelta, shape: torch.Size) -> Tensor:
    """The distance between neighbouring codes at every weight, float64."""
    group = int(encoded.params["group"]) or shape[-1]
    scales = encoded.parts["scales"].double() * encoded.params["factor"]
    return scales.repeat_interleave(group, dim=1)[:, : shape[-1]].expand(shape)


def changed_rows(rows: list[int], seed: int) -> dict[str, Tensor]:
    """A model that differs from the base in these rows of the embedding and in DOWN."""
    moved = tuned(WEIGHTS, seed)
    embedding = WEIGHTS[EMBEDDING].clone()
    embedding[rows] = moved[EMBEDDING][rows]
    return {**WEIGHTS, EMBEDDING: embedding, DOWN: moved[DOWN]}


@pytest.mark.parametrize("options", ["base=3,offset=2", "base=2,offset=3,group=0", "base=2"])
def test_rtvq_errs_by_half_a_step_of_the_offset_alone(tmp_path: Path, options: str) -> None:
    bank = built(tmp_path, f"rtvq({options})")
    for name in MATRICES:
        originals, base = vectors(MODELS, name), shared_values(bank, name)
        mean = originals.mean(dim=0)
        base_steps = steps(shared_delta(bank, name), mean.shape)
        assert ((base - mean).abs() <= base_steps / 2 * ROUNDING).all()
        for task, original in zip(MODELS, originals, strict=True):
            encoded = bank.read(task, name)
            error = (decode(encoded).double() - original).abs()
            assert (error <= steps(encoded, original.shape) / 2 * ROUNDING).all()


def test_rtvq_offsets_span_what_the_decoded_base_leaves(tmp_path: Path) -> None:
    bank = built(tmp_path, "rtvq(base=2,offset=3,group=0)")
    for name in MATRICES:
        for task, original in zip(MODELS, vectors(MODELS, name), strict=True):
            offset = original - shared_values(bank, name)
            step = float((offset.max().clamp(min=0) - offset.min().clamp(max=0)) / 7)
            encoded = bank.read(task, name)
            stored = float(encoded.parts["scales"].double() * encoded.params["factor"])
            assert step * (1 - 1e-6) <= stored <= step * SCALE_ROUNDING * (1 + 1e-6)


def test_an_rtvq_task_is_the_base_plus_its_offset(tmp_path: Path) -> None:
    bank = built(tmp_path, "rtvq(base=3,offset=2)")
    assert bank.entry("math").scheme == "rtvq(base=3,offset=2,group=64)"
    for task in MODELS:
        encoded = bank.read(task, QUERY)
        offset = decode(replace(encoded, shared=None))
        assert offset.any()
        assert torch.equal(decode(encoded), decode(shared_delta(bank, QUERY)) + offset)
    assert shared_delta(bank, QUERY).params["bits"] == 3
    assert bank.read("math", QUERY).params["bits"] == 2


@pytest.mark.parametrize("options", ["mtl=4", "mtl=2,group=0", "mtl=8,lambda=1"])
def test_tall_masks_are_those_of_the_vectors_before_they_are_quantised(
    tmp_path: Path, options: str
) -> None:
    threshold = 1.0 if "lambda" in options else 0.4
    bank = built(tmp_path, f"tall({options})")
    for name in MATRICES:
        originals, shared = vectors(MODELS, name), shared_values(bank, name)
        total = originals.sum(dim=0)
        shared_steps = steps(shared_delta(bank, name), total.shape)
        assert ((shared - total).abs() <= shared_steps / 2 * ROUNDING).all()
        for task, original in zip(MODELS, originals, strict=True):
            mask = original.abs() > threshold * (total - original).abs()
            encoded = bank.read(task, name)
            assert torch.equal(unpacked_mask(encoded), mask & (shared != 0))
            assert torch.equal(decode(encoded).double(), mask * shared)


def test_tall_takes_a_threshold_for_each_task(tmp_path: Path) -> None:
    bank = built(tmp_path, "tall(mtl=8,lambda=0.6)", thresholds={"code": 0.2, "law": 3.0})
    originals, shared = vectors(MODELS, DOWN), shared_values(bank, DOWN)
    total = originals.sum(dim=0)
    for index, (task, threshold) in enumerate({"math": 0.6, "code": 0.2, "law": 3.0}.items()):
        mask = originals[index].abs() > threshold * (total - originals[index]).abs()
        assert torch.equal(decode(bank.read(task, DOWN)).double(), mask * shared)
    (record,) = bank.manifest.shared.values()
    assert record.derivation.params["lambda"] == 0.6
    assert record.derivation.params["lambda.code"] == 0.2
    assert record.derivation.params["lambda.law"] == 3.0


def test_a_weight_as_large_as_the_others_part_is_nobodys(tmp_path: Path) -> None:
    base = {**WEIGHTS, QUERY: torch.zeros(20, 20).bfloat16()}
    moved = torch.full((20, 20), 0.5)
    moved[:, :10] = 0.25
    root = tmp_path / "tie"
    sources = {
        "one": save_model(root / "one", {**base, QUERY: torch.full((20, 20), 0.5).bfloat16()}),
        "two": save_model(root / "two", {**base, QUERY: moved.bfloat16()}),
    }
    start = save_model(root / "base", base)
    bank = build_bank(start, sources, Forms.parse("tall(mtl=8,lambda=1)"), root / "set")
    one, two = (unpacked_mask(bank.read(task, QUERY)) for task in sources)
    assert one[:, :10].all()
    assert not one[:, 10:].any()
    assert not two.any()


def test_emr_unifies_and_rescales_over_the_whole_model(tmp_path: Path) -> None:
    bank = built(tmp_path, "emr(mtl=8)")
    own = dict.fromkeys(MODELS, 0.0)
    kept = dict.fromkeys(MODELS, 0.0)
    kept_decoded = dict.fromkeys(MODELS, 0.0)
    for name in MATRICES:
        originals, shared = vectors(MODELS, name), shared_values(bank, name)
        sign = torch.where(originals.sum(dim=0) > 0, 1.0, -1.0).double()
        unified = sign * (originals * sign).clamp(min=0).amax(dim=0)
        shared_steps = steps(shared_delta(bank, name), unified.shape)
        assert ((shared - unified).abs() <= shared_steps / 2 * ROUNDING).all()
        for task, original in zip(MODELS, originals, strict=True):
            mask = original * unified > 0
            assert torch.equal(unpacked_mask(bank.read(task, name)), mask & (shared != 0))
            own[task] += float(original.abs().sum())
            kept[task] += float((mask * unified).abs().sum())
            kept_decoded[task] += float((mask * shared).abs().sum())
    for task in MODELS:
        scales = {bank.read(task, name).params["scale"] for name in MATRICES}
        (scale,) = scales
        assert scale == pytest.approx(own[task] / kept_decoded[task], rel=1e-6)
        assert scale == pytest.approx(own[task] / kept[task], rel=1e-2)
        decoded = decode(bank.read(task, QUERY)).double()
        mask = unpacked_mask(bank.read(task, QUERY))
        torch.testing.assert_close(decoded, scale * mask * shared_values(bank, QUERY))
    assert len({bank.read(task, QUERY).params["scale"] for task in MODELS}) == len(MODELS)


def test_emr_takes_a_sum_of_zero_for_negative(tmp_path: Path) -> None:
    base = {**WEIGHTS, QUERY: torch.zeros(20, 20).bfloat16()}
    half = torch.full((20, 20), 0.5).bfloat16()
    root = tmp_path / "cancel"
    sources = {
        "up": save_model(root / "up", {**base, QUERY: half}),
        "down": save_model(root / "down", {**base, QUERY: -half}),
    }
    start = save_model(root / "base", base)
    bank = build_bank(start, sources, Forms.parse("emr(mtl=8)"), root / "set")
    assert (shared_values(bank, QUERY) < 0).all()
    assert not decode(bank.read("up", QUERY)).any()
    assert bank.read("up", QUERY).params["scale"] == 0.0
    torch.testing.assert_close(decode(bank.read("down", QUERY)), -half.float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_only_rows_that_some_task_changed_are_coded(tmp_path: Path, scheme: str) -> None:
    models = {"one": changed_rows([1, 4], seed=5), "two": changed_rows([4, 7], seed=6)}
    bank = built(tmp_path, scheme, models)
    (digest,) = bank.manifest.shared
    shared = bank.read_shared(digest, EMBEDDING)
    assert shared is not None
    assert shared.rows is not None
    assert shared.rows.tolist() == [1, 4, 7]
    others = [row for row in range(12) if row not in (1, 4, 7)]
    for task in models:
        decoded = decode(bank.read(task, EMBEDDING))
        assert decoded.shape == (12, 20)
        assert not decoded[others].any()
        assert decoded[4].any()
    foreign = decode(bank.read("two", EMBEDDING))[1]
    if scheme.startswith("rtvq"):
        bound = steps(bank.read("two", EMBEDDING), torch.Size((3, 20)))[0] / 2
        assert (foreign.abs().double() <= bound * ROUNDING).all()
    else:
        assert not foreign.any()
    many = {"one": changed_rows([0, 1, 2, 3], seed=5), "two": changed_rows([4, 5, 6, 7], seed=6)}
    whole = built(tmp_path / "many", scheme, many)
    assert shared_delta(whole, EMBEDDING).rows is None


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_a_task_may_leave_alone_what_others_change(tmp_path: Path, scheme: str) -> None:
    models = {
        "idle": {**MODELS["math"], QUERY: WEIGHTS[QUERY], DOWN: WEIGHTS[DOWN]},
        "busy": {**MODELS["code"], DOWN: WEIGHTS[DOWN]},
    }
    bank = built(tmp_path, scheme, models)
    encoded = bank.read("idle", QUERY)
    if scheme.startswith("rtvq"):
        bound = steps(encoded, torch.Size((20, 20))) / 2 * ROUNDING
        assert (decode(encoded).double().abs() <= bound).all()
    else:
        assert not decode(encoded).any()
    assert decode(bank.read("busy", QUERY)).any()
    (record,) = bank.manifest.shared.values()
    assert set(record.content.tensors) == {EMBEDDING, QUERY}
    assert all(DOWN not in entry.tensors for entry in bank.entries.values())


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_a_set_of_one(tmp_path: Path, scheme: str) -> None:
    bank = built(tmp_path, scheme, {"math": MODELS["math"]})
    for name in MATRICES:
        (original,) = vectors({"math": MODELS["math"]}, name)
        encoded = bank.read("math", name)
        finest = encoded if scheme.startswith("rtvq") else shared_delta(bank, name)
        bound = steps(finest, original.shape) / 2 * ROUNDING
        if scheme.startswith("emr"):
            # The rescale makes up for the L1 norm that rounding took.
            scale = float(encoded.params["scale"])
            assert scale == pytest.approx(1.0, rel=0.1)
            bound = scale * bound + abs(scale - 1.0) * original.abs()
        assert ((decode(encoded).double() - original).abs() <= bound).all()


def test_a_tall_set_of_one_is_the_integer_scheme(tmp_path: Path) -> None:
    bank = built(tmp_path, "tall(mtl=4,group=16)", {"math": MODELS["math"]})
    delta = MODELS["math"][DOWN].float() - WEIGHTS[DOWN].float()
    alone = decode(encode(delta, Scheme.of("int4", group=16)))
    assert torch.equal(decode(bank.read("math", DOWN)), alone)


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_norms_stay_dense_and_each_tasks_own(tmp_path: Path, scheme: str) -> None:
    bank = built(tmp_path, scheme)
    (record,) = bank.manifest.shared.values()
    assert NORM not in record.content.tensors
    for task, model in MODELS.items():
        encoded = bank.read(task, NORM)
        assert encoded.codec == "dense"
        assert encoded.shared is None
        assert torch.equal(decode(encoded), model[NORM].float() - WEIGHTS[NORM].float())


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_adapters_in_a_set_keep_their_factors(tmp_path: Path, scheme: str) -> None:
    base = save_model(tmp_path / "base", WEIGHTS)
    sources = {
        "lora": save_adapter(tmp_path / "lora", make_factors()),
        "math": save_model(tmp_path / "math-model", MODELS["math"]),
    }
    bank = build_bank(base, sources, Forms.parse(scheme), tmp_path / "set")
    assert bank.entry("lora").scheme == "lowrank"
    assert bank.entry("lora").shared == ""
    a, b = make_factors().values()
    torch.testing.assert_close(decode(bank.read("lora", QUERY)), 2.0 * b @ a)
    (record,) = bank.manifest.shared.values()
    assert set(record.derivation.bound) == {"math"}
    only = build_bank(base, {"lora": sources["lora"]}, Forms.parse(scheme), tmp_path / "only")
    assert only.manifest.shared == {}


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_the_shared_vector_and_a_task_may_have_the_same_name(tmp_path: Path, scheme: str) -> None:
    renamed = {"shared": MODELS["math"], "gram": MODELS["code"]}
    bank = built(tmp_path, scheme, renamed)
    plain = built(tmp_path / "plain", scheme, {"a": MODELS["math"], "b": MODELS["code"]})
    for task, other in {"shared": "a", "gram": "b"}.items():
        assert bank.entry(task).digest == plain.entry(other).digest
        for name in MATRICES:
            expected = decode(plain.read(other, name))
            assert torch.equal(decode(bank.read(task, name)), expected)


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_the_order_of_the_tasks_does_not_matter(tmp_path: Path, scheme: str) -> None:
    # 1 + 2**-24 + 2**-24 is more than 1 in one order of float32 additions only.
    changes = {"one": 1.0, "two": 2.0**-24, "six": 2.0**-24}
    base = {name: torch.zeros(tensor.shape) for name, tensor in WEIGHTS.items()}
    start = save_model(tmp_path / "base", base, torch_dtype="float32")
    sources = {
        task: save_model(tmp_path / task, {name: tensor + change for name, tensor in base.items()})
        for task, change in changes.items()
    }
    forms = Forms.parse(scheme)
    forward = build_bank(start, sources, forms, tmp_path / "forward")
    backward = build_bank(start, dict(reversed(sources.items())), forms, tmp_path / "backward")
    assert forward.revision == backward.revision


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_large_tensors_are_coded_like_small_ones(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = built(tmp_path / "small", scheme)
    monkeypatch.setattr(setbound, "MAX_HELD_PARAMETERS", 0)
    assert built(tmp_path / "large", scheme).revision == small.revision


def test_masks_take_less_room_given_the_vector_they_are_over(tmp_path: Path) -> None:
    large = {name: torch.zeros(64, 512) for name in (QUERY,)}
    generator = torch.Generator().manual_seed(0)
    base = save_model(tmp_path / "base", large, torch_dtype="float32")
    sources = {
        task: save_model(
            tmp_path / task,
            {QUERY: torch.randn(64, 512, generator=generator)},
            torch_dtype="float32",
        )
        for task in ("one", "two", "six")
    }
    bank = build_bank(base, sources, Forms.parse("tall(mtl=4)"), tmp_path / "set")
    for task in sources:
        part = bank.entry(task).tensors[QUERY].parts["mask"]
        assert part.num_bytes == 64 * 512 // 8
        assert part.num_coded is not None
        symbols = unpacked_mask(bank.read(task, QUERY)).double().mean()
        entropy = float(-(symbols * symbols.log2() + (1 - symbols) * (1 - symbols).log2()))
        assert part.num_coded < 0.95 * entropy * part.num_bytes


def test_a_shared_vector_of_another_shape_is_refused(tmp_path: Path) -> None:
    bank = built(tmp_path, "tall(mtl=4)")
    encoded = bank.read("math", QUERY)
    with pytest.raises(BankFormatError, match="does not fit the shared one"):
        bank.read("math", QUERY, shared_delta(bank, DOWN))
    with pytest.raises(BankFormatError, match="needs the vector it masks"):
        replace(encoded, shared=None)
