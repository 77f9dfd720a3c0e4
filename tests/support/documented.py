"""What a page of the documentation tells its reader to type, and shows of what that prints."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs"
FENCE = "```"
PROMPT = "$ "

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What is typed into a shell, on one line or several, and what the page says that it prints."""

    line: str
    output: str


def commands(page: str, section: str, stands_for: Mapping[str, str]) -> list[list[Command]]:
    """The commands of each block of a section, split into words.

    stands_for: what to put in place of a word of the page, which cannot name this machine's files.
    """
    return [_commands(block, stands_for) for block in _blocks(page, section)]


def steps(page: str, section: str) -> list[Step]:
    """What a section shows after a prompt (`$ `), with its output: one a block."""
    blocks = (block.strip() for block in _blocks(page, section))
    return [_step(block.removeprefix(PROMPT)) for block in blocks if block.startswith(PROMPT)]


def _blocks(page: str, section: str) -> list[str]:
    text = (PAGES / page).read_text(encoding="utf-8")
    _, _, rest = text.partition(f"\n## {section}\n")
    body, _, _ = rest.partition("\n## ")
    blocks = body.split(f"\n{FENCE}\n")[1::2]
    assert blocks, f"{page} has no section {section!r} with commands"
    return blocks


def _step(block: str) -> Step:
    lines = block.splitlines(keepends=True)
    ends = (end for end in range(1, len(lines) + 1) if _is_whole("".join(lines[:end])))
    end = next(ends)
    return Step("".join(lines[:end]), "".join(lines[end:]))


def _is_whole(line: str) -> bool:
    """Whether a shell would not ask for more."""
    try:
        shlex.split(line)
    except ValueError:
        return False
    return not line.endswith("\\\n")


def _commands(block: str, stands_for: Mapping[str, str]) -> list[Command]:
    lines = block.replace("\\\n", " ").splitlines()
    split = (shlex.split(line, comments=True) for line in lines)
    return [tuple(stands_for.get(word, word) for word in words) for words in split]
