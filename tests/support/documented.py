"""The commands that a page of the documentation tells its reader to type."""

import shlex
from collections.abc import Mapping
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs"
FENCE = "```"

Command = tuple[str, ...]


def commands(page: str, section: str, stands_for: Mapping[str, str]) -> list[list[Command]]:
    """The commands of each block of a section, split into words.

    stands_for: what to put in place of a word of the page, which cannot name this machine's files.
    """
    text = (PAGES / page).read_text(encoding="utf-8")
    _, _, rest = text.partition(f"\n## {section}\n")
    body, _, _ = rest.partition("\n## ")
    blocks = body.split(f"\n{FENCE}\n")[1::2]
    assert blocks, f"{page} has no section {section!r} with commands"
    return [_commands(block, stands_for) for block in blocks]


def _commands(block: str, stands_for: Mapping[str, str]) -> list[Command]:
    lines = block.replace("\\\n", " ").splitlines()
    split = (shlex.split(line, comments=True) for line in lines)
    return [tuple(stands_for.get(word, word) for word in words) for words in split]
