"""The kernels compile for both generations of devices, ahead of time, and none spills.

The interpreter is off here. All variants are in benchmarks/results/aot.md; here are those of the
default coding, each for one of the two.
"""

import json

import pytest
import triton

from benchmarks.gpu.aot import RESULTS, report_on
from benchmarks.gpu.variants import (
    Variant,
    all_variants,
    ungrouped_variants,
    variants,
)

PICKED = [
    *variants("bf16", 64),
    *(variant for variant in ungrouped_variants("bf16") if "32 rows" not in variant.name),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("index", "variant"), list(enumerate(PICKED)), ids=[variant.name for variant in PICKED]
)
def test_a_kernel_compiles_without_spills(
    index: int, variant: Variant, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    report = report_on(variant, variant.capabilities[index % len(variant.capabilities)])
    assert not report.is_spilling
    if variant.name.startswith(("products", "masked", "composed", "shrink")):
        assert report.matrix
        assert any(load.endswith("128") for load in report.loads)


def test_the_committed_report_covers_every_variant_without_spills() -> None:
    committed = json.loads((RESULTS / "aot.json").read_text(encoding="utf-8"))
    covered = {(report["kernel"], report["capability"]) for report in committed}
    wanted = {(variant.name, sm) for variant in all_variants() for sm in variant.capabilities}
    assert covered == wanted
    assert all(report["spills"] == 0 and report["stack_bytes"] == 0 for report in committed)
