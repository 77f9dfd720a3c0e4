"""What a soak finds in its samples."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.soak import MAX_GROWTH_BYTES, Soak
from benchmarks.usage import HELD, READY, Held, Sample, slope
from taskmix_server.app import MAX_THREADS

ROUND_S = 20.0
CALM = Sample(0.0, {"front": Held(2**30, 50, 20)}, {**dict.fromkeys(HELD, 0.0), READY: 4.0})


def rounds(pss_bytes: Sequence[float]) -> list[Sample]:
    """Samples of a front that holds this much after each round."""
    return [
        replace(CALM, at_s=number * ROUND_S, processes={"front": Held(round(held), 50, 20)})
        for number, held in enumerate(pss_bytes)
    ]


def problems(samples: Sequence[Sample], **outcomes: int) -> list[str]:
    return Soak(samples, outcomes).problems()


def test_the_slope_of_a_line_with_outliers() -> None:
    at_s = [float(number) for number in range(20)]
    values = [5.0 + 0.5 * moment for moment in at_s]
    assert slope(at_s, values) == pytest.approx(0.5)
    values[3] = values[19] = 1e9
    assert slope(at_s, values) == pytest.approx(0.5, rel=0.1)


def test_a_server_that_is_well() -> None:
    noise = [2**30 + (-1) ** number * MAX_GROWTH_BYTES for number in range(12)]
    assert problems(rounds(noise), **{"whole: ok": 3, "refused: NotFoundError": 2}) == []


def test_memory_that_grows() -> None:
    growing = [2**30 + number * MAX_GROWTH_BYTES / 10 for number in range(12)]
    (problem,) = problems(rounds(growing))
    assert problem.startswith("front has grown by 8.8 MiB")
    assert Soak(rounds(growing[:10]), {}).problems() == []


@pytest.mark.parametrize("held", [Held(2**30, 59, 20), Held(2**30, 50, 21 + MAX_THREADS)])
def test_descriptors_or_threads_that_stay(held: Held) -> None:
    samples = rounds([2**30] * 6)
    samples[4] = replace(samples[4], processes={"front": held})
    (problem,) = problems(samples)
    assert "of front between rounds" in problem


def test_a_pool_of_threads_that_fills() -> None:
    samples = rounds([2**30] * 6)
    samples[5] = replace(samples[5], processes={"front": Held(2**30, 50, 20 + MAX_THREADS)})
    assert problems(samples) == []


@pytest.mark.parametrize("name", [*HELD, READY])
def test_what_is_left_behind(name: str) -> None:
    samples = rounds([2**30] * 6)
    samples[2] = replace(CALM, at_s=40.0, gauges={**CALM.gauges, name: 7.0})
    (problem,) = problems(samples)
    assert name in problem


@pytest.mark.parametrize(
    "outcome",
    ["whole: InternalError", "left: UnavailableError", "chat: 500", "chat: ReadTimeout"],
)
def test_a_fault_of_the_server(outcome: str) -> None:
    assert problems(rounds([2**30] * 6), **{outcome: 2}) == [f"{outcome}, 2 times"]
