"""A process that ends does not wait for a task that is being read."""

import subprocess
import sys

SCRIPT = """
import itertools, threading
from taskmix_server.engine.vllm.background import Background, until_exit

began = threading.Event()

def prepare():
    for _ in until_exit(itertools.count()):
        began.set()

Background().begin(prepare)
began.wait()
print("leaving")
"""


def test_reading_stops_when_the_process_ends() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "leaving\n", "")
