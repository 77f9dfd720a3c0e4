"""The picture of results."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.plot import Panel, draw
from taskmix_server.experiments.statistics.comparison import Comparison, compare
from taskmix_server.experiments.statistics.summary import Summary


def found(shift: float) -> Comparison:
    rng = np.random.default_rng(0)
    return compare(Summary.of(rng.normal(shift, 1, 900)), Summary.of(rng.normal(0, 1, 900)))


def drawn(tmp_path, *panels):
    draw(panels, "two mixes", tmp_path / "plot.png")
    return imread(tmp_path / "plot.png")


def has_blue(picture) -> bool:
    """Whether something is drawn in the colour of a difference."""
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    return bool(((blue > 0.6) & (red < 0.3) & (green < 0.6)).any())


def test_a_difference_is_drawn_in_colour(tmp_path):
    assert has_blue(drawn(tmp_path, Panel("score", [("b", found(1.0))])))
    assert not has_blue(drawn(tmp_path, Panel("score", [("b", found(0.0))])))


def test_every_panel_and_arm_takes_room(tmp_path):
    one = drawn(tmp_path, Panel("score", [("b", found(1.0))]))
    more = drawn(
        tmp_path,
        Panel("score", [("b", found(1.0)), ("c", found(0.0))]),
        Panel("latency_s", [("b", found(0.2)), ("c", compare(Summary(), Summary()))]),
    )
    assert more.shape[0] > 2 * one.shape[0] - 60
    assert more.shape[1] == one.shape[1]


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(InvalidRequestError, match="record outcomes"):
        draw([], "nothing", tmp_path / "plot.png")


def test_without_matplotlib_it_says_what_to_install(tmp_path):
    program = (
        "import sys; sys.modules['matplotlib.figure'] = None\n"
        "from pathlib import Path\n"
        "from taskmix_server.errors import FailedPreconditionError\n"
        "from taskmix_server.experiments.plot import Panel, draw\n"
        "assert 'matplotlib' not in sys.modules\n"
        "try: draw([Panel('score', [])], 'title', Path('plot.png'))\n"
        "except FailedPreconditionError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=tmp_path, check=True
    )
    assert b"pip install matplotlib" in done.stdout
    assert not list(tmp_path.iterdir())
