"""A task: prompts whose right answer is a few words, split into training and held-out examples."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from examples.packaged import MissingDataError

NUM_HELD_OUT = 200
NUM_VALIDATION = 100
HELD_OUT_SHARE = 5
MAX_TRAIN = 4000
SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt without trailing space, and the answer that should follow it."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Row:
    """An example and the thing it is about: no subject is both trained on and held out."""

    subject: str
    example: Example


class TaskError(Exception):
    """A task was made, or asked for a score, with what does not fit."""


@dataclass(frozen=True, slots=True)
class Task:
    """Examples to fine-tune on, and held-out ones to be scored on.

    `max_answer_tokens` leaves room for every right answer and the end of text. Settings are chosen
    on `validation`, which is neither trained on nor reported: other examples than `held_out`, but
    where a subject has several examples the two may share it.
    """

    name: str
    description: str
    max_answer_tokens: int
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    validation: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        held_out = set(self.prompts())
        for use, examples in {"trains": self.train, "chooses settings": self.validation}.items():
            leaked = {example.prompt for example in examples} & held_out
            if leaked:
                raise TaskError(
                    f"{self.name} {use} on {len(leaked)} of its held-out prompts, such as "
                    f"{min(leaked)!r}: give each text once"
                )

    def prompts(self) -> list[str]:
        """The held-out prompts, in the order in which `score` expects their answers."""
        return [example.prompt for example in self.held_out]

    def score(self, answers: Sequence[str]) -> float:
        """The fraction of held-out examples answered exactly, in [0, 1]."""
        if len(answers) != len(self.held_out):
            raise TaskError(
                f"{self.name} has {len(self.held_out)} held-out prompts but {len(answers)} answers "
                "were given: give one answer per prompt, in order"
            )
        pairs = zip(answers, self.held_out, strict=True)
        return sum(is_right(text, example) for text, example in pairs) / len(self.held_out)


def is_right(answer: str, example: Example) -> bool:
    """Whether a model's text is the example's answer."""
    return normalized(answer) == normalized(example.answer)


def normalized(answer: str) -> str:
    """The first line of an answer without case, surrounding space, quotes and full stop."""
    first_line, _, _ = answer.strip().partition("\n")
    return first_line.strip(" \t\"'.").casefold()


def split(name: str, description: str, max_answer_tokens: int, rows: Iterable[Row]) -> Task:
    """Hold out one subject in `HELD_OUT_SHARE`, drawn at random, and train on the others.

    Of the subjects held out come the held-out examples and the ones for validation. The draw
    depends on nothing but the rows.
    """
    by_subject: dict[str, list[Example]] = {}
    for row in rows:
        by_subject.setdefault(row.subject, []).append(row.example)
    draw = random.Random(SPLIT_SEED)  # noqa: S311 - a sample, not a secret
    subjects = sorted(by_subject)
    draw.shuffle(subjects)
    num_held_out_subjects = len(subjects) // HELD_OUT_SHARE

    def drawn(chosen: list[str], max_examples: int) -> tuple[Example, ...]:
        examples = [example for subject in chosen for example in by_subject[subject]]
        draw.shuffle(examples)
        return tuple(examples[:max_examples])

    num_kept = NUM_HELD_OUT + NUM_VALIDATION
    kept = drawn(subjects[:num_held_out_subjects], num_kept)
    train = drawn(subjects[num_held_out_subjects:], MAX_TRAIN)
    if len(kept) < num_kept:
        raise MissingDataError(
            f"{name} has only {len(kept)} examples to hold out, {num_kept} are needed: "
            "reinstall the package that carries its data, or run `make setup` again"
        )
    held_out, validation = kept[:NUM_HELD_OUT], kept[NUM_HELD_OUT:]
    return Task(name, description, max_answer_tokens, train, held_out, validation)
