"""Preparing the base twice converts it once."""

from importlib.metadata import version

from examples.packaged import packaged_file
from examples.published import published
from examples.smollm2 import GGUF, PACKAGE, prepare_base


def test_the_weights_are_where_their_package_puts_them():
    with packaged_file(PACKAGE, GGUF).open("rb") as file:
        assert file.read(4) == b"GGUF"


def test_a_prepared_base_is_left_alone(tmp_path):
    with published(tmp_path / "base", {"package": PACKAGE, "version": version(PACKAGE)}) as made:
        (made / "mark").touch()
    assert prepare_base(tmp_path) == tmp_path / "base"
    assert (tmp_path / "base" / "mark").exists()
