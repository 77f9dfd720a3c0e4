"""Scoring and splitting: what counts as right, and that nothing held out is trained on."""

import pytest

from examples.packaged import MissingDataError
from examples.tasks.task import (
    NUM_HELD_OUT,
    NUM_VALIDATION,
    Example,
    Row,
    Task,
    TaskError,
    normalized,
    split,
)


def make_task(*answers: str) -> Task:
    held_out = tuple(Example(f"prompt {i}", answer) for i, answer in enumerate(answers))
    return Task("toy", "a toy", 4, (Example("other", "x"),), held_out)


def make_rows(num_subjects: int, rows_each: int) -> list[Row]:
    return [
        Row(f"subject {s}", Example(f"prompt {s}.{r}", str(r)))
        for s in range(num_subjects)
        for r in range(rows_each)
    ]


@pytest.mark.parametrize(
    "answer", ["Positive", " positive\n\nThe review", '\n "positive."', "POSITIVE.", "positive"]
)
def test_case_quotes_and_later_lines_do_not_matter(answer):
    assert normalized(answer) == "positive"


@pytest.mark.parametrize("answer", ["", "\n", "positive review", "posit", "not positive"])
def test_any_other_word_matters(answer):
    assert normalized(answer) != "positive"


def test_score_is_the_fraction_of_exact_answers():
    task = make_task("geese", "mice", "oxen", "feet")
    assert task.score([" geese", "mouses", "Oxen.\nSingular: foot", ""]) == 0.5
    assert task.score(["geese", "mice", "oxen", "feet"]) == 1.0


def test_score_follows_the_order_of_prompts():
    task = make_task("a", "b")
    assert task.prompts() == ["prompt 0", "prompt 1"]
    assert task.score(["b", "a"]) == 0.0


def test_score_wants_one_answer_per_prompt():
    with pytest.raises(TaskError, match="2 held-out prompts but 1 answers"):
        make_task("a", "b").score(["a"])


def test_a_prompt_cannot_be_trained_on_and_held_out():
    example = Example("same", "x")
    with pytest.raises(TaskError, match="toy trains on 1 of its held-out prompts, such as 'same'"):
        Task("toy", "a toy", 4, (example,), (example,))


def test_settings_are_not_chosen_on_what_is_reported():
    example, other = Example("same", "x"), Example("other", "x")
    with pytest.raises(TaskError, match="toy chooses settings on 1 of its held-out prompts"):
        Task("toy", "a toy", 4, (other,), (example,), validation=(example,))


def test_no_subject_is_on_both_sides():
    task = split("toy", "a toy", 4, make_rows(num_subjects=600, rows_each=3))
    trained, kept = (
        {example.prompt.partition(".")[0] for example in side}
        for side in (task.train, (*task.held_out, *task.validation))
    )
    assert len(task.held_out) == NUM_HELD_OUT
    assert len(task.validation) == NUM_VALIDATION
    assert len(task.train) == 480 * 3
    assert not trained & kept


def test_the_split_depends_on_the_rows_only():
    rows = make_rows(num_subjects=1500, rows_each=1)
    assert split("toy", "a toy", 4, rows) == split("toy", "a toy", 4, reversed(rows))


def test_too_few_rows_are_refused():
    with pytest.raises(MissingDataError, match="only 299 examples to hold out, 300 are needed"):
        split("toy", "a toy", 4, make_rows(num_subjects=1499, rows_each=1))
