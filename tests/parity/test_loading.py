"""Tasks come and go beside the model: what it answers meanwhile, and once a change is made."""

import shutil
from collections.abc import Iterator

import pytest

from taskmix_composer.bank import Bank
from taskmix_composer.build import add_task, build_bank
from taskmix_composer.forms import Forms
from taskmix_composer.mix import BASE_MIX, Mix
from tests.support.inprocess import InProcessEngine
from tests.support.parity import NUM_TOKENS, Oracle, prompt_of
from tests.support.tiny import TinyModel, make_base, make_finetune

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

SCHEMES = {"held": "int4(group=32)", "coming": "int2(group=32)", "other": "sign"}
MIXES = [BASE_MIX, Mix.parse("held:0.8"), Mix.parse("held:-0.5")]
PROMPTS = [prompt_of(6 + 8 * index, seed=index) for index in range(len(MIXES))]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    folder = tmp_path_factory.mktemp("loading")
    base = make_base(folder / "base", TinyModel(num_layers=2))
    tuned = {
        name: make_finetune(base, folder / name, seed=seed) for seed, name in enumerate(SCHEMES)
    }
    bank = folder / "bank"
    build_bank(base, {"held": tuned["held"]}, Forms.parse(SCHEMES["held"]), bank)
    for name in ("coming", "other"):
        add_task(bank, base, name, tuned[name], Forms.parse(SCHEMES[name]))
    (folder / "merged").mkdir()
    return Oracle(base, bank, folder / "merged", models={})


@pytest.fixture(scope="module")
def engine(oracle: Oracle) -> Iterator[InProcessEngine]:
    engine = InProcessEngine(
        oracle.base,
        oracle.bank,
        dtype="float32",
        max_num_seqs=len(MIXES),
        max_model_len=256,
        kv_cache_memory_bytes=2**26,
    )
    engine.load("held")
    yield engine
    engine.close()


def test_answers_stay_while_a_task_comes_and_goes(engine: InProcessEngine, oracle: Oracle) -> None:
    before, memory = engine.greedy(MIXES, PROMPTS, NUM_TOKENS), engine.memory()
    digest = Bank.open(oracle.bank).entry("coming").digest
    with engine.changing("taskmix_begin_load", "coming", digest):
        assert engine.greedy(MIXES, PROMPTS, NUM_TOKENS) == before
        assert engine.memory().tasks == memory.tasks, "nothing is held before it is finished"
    assert engine.memory().tasks > memory.tasks
    assert engine.greedy(MIXES, PROMPTS, NUM_TOKENS) == before
    with engine.changing("taskmix_begin_unload", digest):
        assert engine.greedy(MIXES, PROMPTS, NUM_TOKENS) == before
    assert engine.memory().tasks == memory.tasks
    assert engine.greedy(MIXES, PROMPTS, NUM_TOKENS) == before


def test_a_task_is_servable_right_after_its_load(engine: InProcessEngine, oracle: Oracle) -> None:
    engine.load("coming")
    mixes = [Mix.parse("coming:0.9"), Mix.parse("held:0.5+coming:0.5"), MIXES[1]]
    oracle.check(engine, mixes, PROMPTS)
    engine.unload("coming")
    oracle.check(engine, MIXES, PROMPTS)


def test_a_load_that_fails_leaves_nothing(engine: InProcessEngine, oracle: Oracle) -> None:
    memory = engine.memory()
    (shard,) = (oracle.bank / "shards").glob("other-*")
    kept = shutil.copy(shard, oracle.folder / "kept")
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([shard.read_bytes()[-1] ^ 1]))
    with pytest.raises(AssertionError, match="BankFormatError"):
        engine.load("other")
    assert engine.memory() == memory
    shutil.move(kept, shard)
    engine.load("other")
    oracle.check(engine, [Mix.parse("other"), *MIXES[1:]], PROMPTS)
    engine.unload("other")
