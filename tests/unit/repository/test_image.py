"""The image serves from the state that docs/operations.md has its operator prepare."""

import json
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text()
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def test_the_image_s_state_is_where_its_tenants_are_created() -> None:
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    arguments = json.loads(entrypoint)
    state = arguments[arguments.index("--state") + 1]
    created = re.findall(r"^taskmix tenants create [^`]*?--state (\S+)$", OPERATIONS, re.MULTILINE)
    (volume,) = re.findall(r"docker run -v \w+:(\S+) ", OPERATIONS)
    assert {state, volume} == set(created)


def test_what_the_image_sets_is_explained() -> None:
    (setting,) = re.findall(r"^ENV (MALLOC_\w+=\d+)$", DOCKERFILE, re.MULTILINE)
    assert f"The image sets `{setting}`" in OPERATIONS
