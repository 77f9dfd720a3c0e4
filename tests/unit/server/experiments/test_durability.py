"""A process that writes is killed: what it acknowledged is there, once, and nothing by half."""

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select

from taskmix_server.database import Database
from taskmix_server.database.models import NamedMixRow, OutcomeRow
from taskmix_server.experiments.experiment import Status
from taskmix_server.experiments.outcome import Outcome
from taskmix_server.experiments.recording import Recorded, RecordStore
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.tenancy.audit import AuditLog
from tests.unit.server.experiments.designs import AUTHOR, CODE, MATH, draft, measured

NUM_OUTCOMES = 1000
ROOT = Path(__file__).parents[4]

RECORD = """
import sys
from pathlib import Path
from taskmix_server.database import Database
from taskmix_server.experiments.outcome import Outcome
from taskmix_server.experiments.recording import RecordStore

records = RecordStore(Database.at(Path(sys.argv[1])))
for number in range(1000):
    records.record("tone", [Outcome(f"key {number}", "rating", float(number), "ann")], None)
    print(number, flush=True)
"""

PROMOTE = """
import sys
from pathlib import Path
from taskmix_server.database import Database
from taskmix_server.experiments.store import ExperimentStore
from tests.unit.server.experiments.designs import AUTHOR

store = ExperimentStore(Database.at(Path(sys.argv[1])))
while True:
    store.promote("tone", "mixed", "prod", AUTHOR)
    print("promoted", flush=True)
    store.rollback("tone", AUTHOR)
    print("undone", flush=True)
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with a running experiment that has answered ann."""
    database = Database.at(tmp_path / "state")
    store = ExperimentStore(database)
    store.create(draft(), AUTHOR)
    tone = store.start("tone", AUTHOR)
    assert tone.started_at is not None
    RecordStore(database).write([measured(tone, "ann", tone.started_at)])
    database.close()
    return tmp_path / "state"


def killed_after(program: str, state: Path, num_lines: int) -> list[str]:
    """Run a program on the directory and kill it in the midst of its work; what it has said."""
    command = [sys.executable, "-c", program, str(state)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(num_lines)]
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
        assert child.wait() == -signal.SIGKILL
    return [line.strip() for line in said]


def test_acknowledged_outcomes_are_there_once(state: Path) -> None:
    acknowledged = {int(line) for line in killed_after(RECORD, state, NUM_OUTCOMES // 2)}
    assert NUM_OUTCOMES // 2 <= len(acknowledged) < NUM_OUTCOMES
    database = Database.at(state)
    records = RecordStore(database)
    with database.reading() as session:
        kept = Counter(session.scalars(select(OutcomeRow.key)))
    assert set(kept.values()) == {1}
    assert {f"key {number}" for number in acknowledged} <= kept.keys()
    assert len(kept) <= len(acknowledged) + 1  # the one that was under way
    every = [Outcome(f"key {n}", "rating", float(n), "ann") for n in range(NUM_OUTCOMES)]
    again = records.record("tone", every, None)  # the caller does not know, and sends all of them
    assert again == Recorded(NUM_OUTCOMES - len(kept), len(kept))
    database.close()


@pytest.mark.parametrize("num_lines", [1, 8])
def test_a_promotion_is_whole_or_not_at_all(state: Path, num_lines: int) -> None:
    opened = Database.at(state)
    with opened.writing() as session:
        session.add(NamedMixRow(name="prod", mix_json=MATH.canonical_json()))
    opened.close()
    said = killed_after(PROMOTE, state, num_lines)
    database = Database.at(state)
    experiment = ExperimentStore(database).get("tone")
    with database.reading() as session:
        named = session.scalars(select(NamedMixRow.mix_json)).one()
    is_promoted = experiment.status is Status.PROMOTED
    assert (experiment.promotion is not None) == is_promoted
    assert named == (CODE if is_promoted else MATH).canonical_json()
    changes = [record.change for record in AuditLog(database).latest(1000)]
    steps = [change.verb for change in changes if change.verb.endswith(("promote", "rollback"))]
    assert (steps[0] == "experiments.promote") == is_promoted
    assert len(said) <= len(steps) <= len(said) + 1
    database.close()
