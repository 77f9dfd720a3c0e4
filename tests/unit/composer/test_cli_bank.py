"""The verbs on set-bound, archived and merged banks, as typed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from taskmix_composer.bank import Bank
from taskmix_composer.tensorfile import tensor_bytes
from taskmix_server.cli import main
from tests.unit.composer.models import make_weights, save_model, tuned

MODELS = {task: tuned(make_weights(), seed) for task, seed in {"math": 1, "code": 2}.items()}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """The one line of a command that exits with 1."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture
def path(tmp_path: Path, base: Path, math: Path, code: Path) -> Path:
    """An archived bank of two tasks over one vector."""
    out = tmp_path / "built"
    tasks = ("--task", f"math={math}", "--task", f"code={code}")
    scheme = ("--scheme", "exact,tall(mtl=4)")
    done("bank", "build", "--base", base, *tasks, *scheme, "--out", out)
    return out


@pytest.fixture
def lean(tmp_path: Path, base: Path, math: Path, code: Path) -> Path:
    """The same without archives."""
    out = tmp_path / "lean"
    tasks = ("--task", f"math={math}", "--task", f"code={code}")
    done("bank", "build", "--base", base, *tasks, "--scheme", "tall(mtl=4)", "--out", out)
    return out


@pytest.fixture
def law(tmp_path: Path) -> Path:
    return save_model(tmp_path / "law", tuned(make_weights(), seed=3))


def test_thresholds_are_given_by_task(tmp_path: Path, base: Path, math: Path, code: Path) -> None:
    out = tmp_path / "out"
    build = ("bank", "build", "--base", base, "--task", f"a={math}", "--task", f"b={code}")
    done(*build, "--scheme", "tall", "--lambda", "a=0.2", "--lambda", "b=3", "--out", out)
    (shared,) = Bank.open(out).manifest.shared.values()
    assert shared.derivation.params["lambda.a"] == 0.2
    assert shared.derivation.params["lambda.b"] == 3.0
    assert "'c' has a lambda" in refused(
        *build, "--scheme", "tall", "--lambda", "c=1", "--out", tmp_path / "two"
    )
    assert "only tall takes a lambda" in refused(
        *build, "--lambda", "a=1", "--out", tmp_path / "two"
    )
    misused = run(*build, "--scheme", "tall", "--lambda", "a", "--out", tmp_path / "two")
    assert misused.exit_code == 2
    assert "NAME=NUMBER" in misused.stderr


def test_adding_to_a_set_says_what_it_rewrites_and_why(
    path: Path, base: Path, law: Path, adapter: Path
) -> None:
    quiet = done("bank", "add", path, "--base", base, "--task", f"lora={adapter}")
    assert quiet.stderr == ""
    added = done("bank", "add", path, "--base", base, "--task", f"law={law}")
    assert added.stderr.startswith("rewriting code, math: under tall(mtl=4,group=64,lambda=0.4) ")
    assert "law included" in added.stderr
    assert added.stdout.startswith(f"{path}: code, law, lora, math (revision ")
    assert len(Bank.open(path).manifest.shared) == 1


def test_a_set_without_archives_takes_tasks_over_its_frozen_vector(
    lean: Path, base: Path, law: Path
) -> None:
    add = ("bank", "add", lean, "--base", base, "--task", f"law={law}")
    message = refused(*add)
    assert "--freeze-shared" in message
    assert "code, math" in message
    before = Bank.open(lean)
    assert done(*add, "--freeze-shared").stderr == ""
    after = Bank.open(lean)
    assert after.entry("law").shared == before.entry("math").shared
    assert after.entry("math") == before.entry("math")
    assert "no shared vector under int4" in refused(
        "bank", "add", lean, "--base", base, "--task", f"x={law}", "--scheme", "int4",
        "--freeze-shared",
    )  # fmt: skip


def test_recode(path: Path, lean: Path, base: Path) -> None:
    recode = ("bank", "recode", path, "--base", base)
    assert done(*recode, "--scheme", "int2", "--tasks", "math").stdout.startswith(
        f"{path}: code, math (revision "
    )
    opened = Bank.open(path)
    assert opened.entry("math").scheme == "int2(group=64)"
    assert opened.entry("code").scheme.startswith("tall")
    done(*recode, "--scheme", "emr(mtl=2)")
    schemes = {entry.scheme for entry in Bank.open(path).entries.values()}
    assert schemes == {"emr(mtl=2,group=64)"}
    assert "'law'" in refused(*recode, "--scheme", "int4", "--tasks", "law")
    assert "'q' is not available" in refused(*recode, "--scheme", "q")
    assert "'code' as tall" in refused("bank", "recode", lean, "--base", base, "--scheme", "int4")
    assert run("bank", "recode", path, "--base", base).exit_code == 2


def test_recode_takes_thresholds_by_task(path: Path, base: Path) -> None:
    recode = ("bank", "recode", path, "--base", base)
    done(*recode, "--scheme", "tall(lambda=0.6)", "--lambda", "code=0.2")
    (shared,) = Bank.open(path).manifest.shared.values()
    params = shared.derivation.params
    assert (params["lambda"], params["lambda.code"]) == (0.6, 0.2)
    assert "lambda.math" not in params
    revision = Bank.open(path).revision
    for scheme, words, tasks in (
        ("tall", "'code' has a lambda", ("--tasks", "math")),
        ("int4", "only tall takes a lambda", ()),
    ):
        message = refused(*recode, "--scheme", scheme, "--lambda", "code=0.2", *tasks)
        assert words in message
    assert Bank.open(path).revision == revision


def test_merge_publishes_entries_and_planes(path: Path, base: Path) -> None:
    merge = ("bank", "merge", path, "--base", base, "--tasks", "math, code")
    entry = done(*merge, "--method", "ties", "--param", "density=0.3", "--name", "both")
    assert entry.stdout.splitlines()[-1] == "mix: both:1.0"
    assert Bank.open(path).entry("both").provenance.params["density"] == 0.3
    planes = done(*merge, "--method", "magmax", "--planes", "--name", "m")
    mix = planes.stdout.splitlines()[-1].removeprefix("mix: ")
    terms = json.loads(mix)["terms"]
    assert {(term["task"], term["masks"][0]) for term in terms} == {
        ("math", "m.math"),
        ("code", "m.code"),
    }
    out = path.parent / "out"
    done("export", path, "--base", base, "--mix", mix, "--out", out)
    table = done("bank", "inspect", path).stdout
    assert "plane m.math: magmax, density 0." in table
    assert "for code, math" in table
    assert "ties of code, math" in table
    swapped = json.dumps({"terms": terms[:1]})
    assert "was elected for the tasks code, math" in refused(
        "export", path, "--base", base, "--mix", swapped, "--out", path.parent / "two"
    )


def test_planes_are_made_of_planes(path: Path, base: Path) -> None:
    merge = ("bank", "merge", path, "--base", base, "--tasks", "math,code")
    done(*merge, "--method", "magmax", "--planes", "--name", "m")
    done("bank", "plane", path, "--of", "m.math,m.code", "--name", "any")
    done("bank", "plane", path, "--of", "m.math,!m.code", "--at-least", 2, "--name", "own")
    table = done("bank", "inspect", path).stdout
    assert "plane any: at-least, density" in table
    planes = Bank.open(path).planes
    assert planes["own"].derivation.params == {"k": 2, "planes": "m.math,!m.code"}
    assert planes["own"].density <= planes["m.math"].density <= planes["any"].density
    combine = ("bank", "plane", path, "--of", "m.math,m.code")
    assert "at least 3 of 2 planes" in refused(*combine, "--at-least", 3, "--name", "x")
    assert "has 'any' already" in refused(*combine, "--name", "any")


def test_merges_that_cannot_be_met(path: Path, lean: Path, base: Path, math: Path) -> None:
    merge = ("bank", "merge", path, "--base", base)
    pair = ("--tasks", "math,code", "--name", "x")
    assert "there is no method 'best'" in refused(*merge, *pair, "--method", "best")
    assert "cannot use parameter 'k=1'" in refused(
        *merge, *pair, "--method", "magmax", "--param", "k=1"
    )
    assert "has 'math' already" in refused(
        *merge, "--tasks", "math,code", "--name", "math", "--method", "magmax"
    )
    assert "'law'" in refused(*merge, "--tasks", "math,law", "--name", "x", "--method", "magmax")
    assert "name the tasks" in refused(*merge, "--tasks", ",", "--name", "x", "--method", "magmax")
    assert "is no sum of masked" in refused(*merge, *pair, "--method", "tsv-m", "--planes")
    poor = ("bank", "merge", lean, "--base", base, *pair, "--method", "magmax")
    message = refused(*poor)
    assert "--from math=DIR" in message
    assert "--from-bank" in message
    assert "'code'" in refused(*poor, "--from", f"math={math}")
    assert "'x' has a directory" in refused(*poor, "--from", f"x={math}")
    done(*poor, "--from-bank")
    assert Bank.open(lean).entry("x").provenance.is_from_bank
    scalar = run(*merge, *pair, "--method", "metagpt")
    assert scalar.exit_code == 2
    assert "needs no merge" in scalar.stderr


def test_inspect_counts_everything(path: Path, base: Path) -> None:
    done(
        "bank", "merge", path, "--base", base, "--tasks", "math,code", "--method", "magmax",
        "--name", "m", "--planes",
    )  # fmt: skip
    done(
        "bank", "merge", path, "--base", base, "--tasks", "math,code", "--method", "emr",
        "--name", "both",
    )  # fmt: skip
    fields = json.loads(done("bank", "inspect", path, "--json").stdout)
    opened = Bank.open(path)
    assert set(fields) == {
        "path",
        "revision",
        "base",
        "tasks",
        "shared",
        "planes",
        "bytes",
        "archive_bytes",
        "resident_bytes",
    }
    files = {file.name: file.stat().st_size for file in (path / "shards").iterdir()}
    gram = sum(size for name, size in files.items() if name.startswith("gram-"))
    assert fields["bytes"] + fields["archive_bytes"] == sum(files.values()) - gram
    (digest,) = opened.manifest.shared
    math = fields["tasks"]["math"]
    assert math["shared"] == digest[:16]
    assert math["scheme"] == "tall(mtl=4,group=64,lambda=0.4)"
    assert math["digest"] == opened.entry("math").digest
    assert not math["is_derived"]
    assert (math["source"], math["source_dtype"]) == ("math-model", "BF16")
    # A row of 20 columns takes 3 bytes of mask, one of 36 takes 5; the norm is float32.
    assert math["resident_bytes"] == (12 + 20) * 3 + 20 * 5 + 20 * 4
    assert math["archive_bytes"] == opened.entry("math").archive.shard.num_bytes
    assert set(fields["shared"]) == {digest[:16]}
    shared = fields["shared"][digest[:16]]
    assert shared["tasks"] == ["code", "math"]
    assert shared["scheme"] == "int4(group=64)"
    # Eight codes of four bits are four bytes; a scale and a zero-point are three.
    assert shared["resident_bytes"] == (12 + 20) * (12 + 3) + 20 * (20 + 3)
    plane = fields["planes"]["m.math"]
    assert (plane["method"], plane["tasks"]) == ("magmax", ["code", "math"])
    assert plane["resident_bytes"] == (12 + 20) * 3 + 20 * 5 + 3
    densities = [plane["density"] for plane in fields["planes"].values()]
    assert sum(densities) == pytest.approx(1.0)
    both = fields["tasks"]["both"]
    assert both["is_derived"]
    assert both["source"] == "emr of code, math"
    assert (both["shared"], both["archive_bytes"]) == ("", 0)
    parts = [*fields["tasks"].values(), *fields["shared"].values(), *fields["planes"].values()]
    assert fields["resident_bytes"] == sum(part["resident_bytes"] for part in parts)


def test_inspect_prints_what_is_shared(path: Path) -> None:
    table = done("bank", "inspect", path).stdout
    opened = Bank.open(path)
    (digest,) = opened.manifest.shared
    assert f"shared {digest[:16]}: int4(group=64) for code, math;" in table
    archived = sum(entry.archive.shard.num_bytes for entry in opened.entries.values())
    assert f"archives {archived} bytes" in table


def test_verify_reads_shared_vectors_archives_and_planes(
    path: Path, base: Path, math: Path
) -> None:
    done(
        "bank", "merge", path, "--base", base, "--tasks", "math,code", "--method", "magmax",
        "--name", "m", "--planes",
    )  # fmt: skip
    verified = done("bank", "verify", path, "--base", base, "--against", f"math={math}")
    assert "math: relative L2 error" in verified.stdout
    opened = Bank.open(path)
    digest = next(iter(opened.manifest.shared))
    labels = {f"_shared-{digest[:16]}", f"math-{opened.entry('math').archive.digest[:16]}"}
    labels |= {f"m.code-{opened.planes['m.code'].digest[:16]}"}
    labels |= {f"gram-{opened.manifest.gram.digest[:16]}"}
    for label in labels:
        file = path / "shards" / f"{label}.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert file.name in refused("bank", "verify", path)
        file.write_bytes(content)
    done("bank", "verify", path)


def test_export_gives_the_fine_tune_back_unless_asked_for_what_is_served(
    path: Path, base: Path, tmp_path: Path
) -> None:
    export = ("export", path, "--base", base, "--mix", "math", "--out")
    done(*export, tmp_path / "own")
    done(*export, tmp_path / "served", "--as-served")
    own = load_file(tmp_path / "own" / "model.safetensors")
    served = load_file(tmp_path / "served" / "model.safetensors")
    same = {name: tensor_bytes(own[name]) == tensor_bytes(MODELS["math"][name]) for name in own}
    assert all(same.values())
    assert any(tensor_bytes(served[name]) != tensor_bytes(own[name]) for name in own)
    method = json.dumps({"method": "metagpt", "tasks": ["math", "code"]})
    expanded = done(*export[:5], method, "--out", tmp_path / "meta").stdout
    assert expanded.startswith(f"{tmp_path / 'meta'}: code:0.")
    assert "Error: " in refused(*export[:5], '{"method": "ties", "tasks": []}', "--out", "x")
