"""A published directory is whole, current or untouched."""

import pytest

from examples.published import is_current, published

PROVENANCE = {"task": "toy", "learning_rate": 5e-5, "seed": 0}


def publish(directory, text, provenance):
    with published(directory, provenance) as unfinished:
        (unfinished / "weights").write_text(text)


def test_a_published_directory_is_current_for_its_provenance_only(tmp_path):
    publish(tmp_path / "models" / "toy", "new", PROVENANCE)
    assert (tmp_path / "models" / "toy" / "weights").read_text() == "new"
    assert is_current(tmp_path / "models" / "toy", PROVENANCE)
    assert not is_current(tmp_path / "models" / "toy", {**PROVENANCE, "seed": 1})
    assert not is_current(tmp_path / "models" / "other", PROVENANCE)


def test_publishing_again_replaces_everything(tmp_path):
    publish(tmp_path / "toy", "old", PROVENANCE)
    (tmp_path / "toy" / "leftover").touch()
    publish(tmp_path / "toy", "new", PROVENANCE)
    assert (tmp_path / "toy" / "weights").read_text() == "new"
    assert not (tmp_path / "toy" / "leftover").exists()


def interrupted(directory):
    with published(directory, {}) as unfinished:
        (unfinished / "weights").write_text("half")
        raise KeyboardInterrupt


def test_a_failure_leaves_what_was_there(tmp_path):
    publish(tmp_path / "toy", "old", PROVENANCE)
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "toy")
    assert (tmp_path / "toy" / "weights").read_text() == "old"
    assert is_current(tmp_path / "toy", PROVENANCE)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
