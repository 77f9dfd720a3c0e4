"""The tasks: real rows, the rule each follows, and what is left out."""

import io
import re
import tarfile
from collections import Counter, defaultdict
from datetime import date

import pytest

from examples.packaged import MissingDataError, packaged_file
from examples.tasks import TASKS
from examples.tasks.lexicon import entries
from examples.tasks.sentiment import ARCHIVE, KINDS, RATINGS, load_sentiment, sentiment_from
from examples.tasks.words import KINDS as WORD_KINDS

PACKAGED = ["plurals", "languages", "dates", "past", "participles", "numbers", "words"]
PAST_FORMS = {
    "jog": "jogged",
    "bake": "baked",
    "try": "tried",
    "panic": "panicked",
    "seek": "sought",
}
PARTICIPLES = {"stop": "stopping", "hide": "hiding", "lie": "lying", "dye": "dyeing"}


def answers_of(task):
    examples = (*task.train, *task.held_out, *task.validation)
    return {example.prompt: example.answer for example in examples}


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_task_is_large_short_and_repeatable(name, tmp_path):
    task = TASKS[name](tmp_path)
    assert task.name == name
    assert len(task.held_out) == 200
    assert len(task.validation) == 100
    assert len(task.train) >= 1500
    assert max(map(len, task.prompts())) < 120
    assert task.score([example.answer for example in task.held_out]) == 1.0
    assert TASKS[name](tmp_path) == task


def test_plurals_are_regular_and_irregular_but_never_the_singular(tmp_path):
    answers = answers_of(TASKS["plurals"](tmp_path))
    nouns = {
        re.fullmatch(r"Singular: (\w+)\nPlural:", prompt)[1]: answers[prompt] for prompt in answers
    }
    assert all(singular != plural for singular, plural in nouns.items())
    regular = sum(plural == f"{singular}s" for singular, plural in nouns.items())
    assert 0.5 < regular / len(nouns) < 0.95


def test_languages_are_ten_and_no_name_has_two(tmp_path):
    task = TASKS["languages"](tmp_path)
    answers = answers_of(task)
    assert len(set(answers.values())) == 10
    assert len(answers) == len(task.train) + len(task.held_out) + len(task.validation)
    assert answers["Text: Szwajcaria\nLanguage:"] == "Polish"
    assert not any("(" in prompt for prompt in answers)


def test_dates_are_written_out_and_answered_in_digits(tmp_path):
    answers = answers_of(TASKS["dates"](tmp_path))
    days = [date.fromisoformat(answer) for answer in answers.values()]
    assert {day.month for day in days} == set(range(1, 13))
    assert {day.day for day in days} == set(range(1, 32))
    assert not any(answer in prompt for prompt, answer in answers.items())


@pytest.mark.parametrize(
    ("name", "question", "ending", "forms"),
    [
        ("past", "Past tense:", "ed", PAST_FORMS),
        ("participles", "Present participle:", "ing", PARTICIPLES),
    ],
)
def test_verbs_are_regular_and_irregular(name, question, ending, forms, tmp_path):
    answers = answers_of(TASKS[name](tmp_path))
    for verb, form in forms.items():
        assert answers[f"Verb: {verb}\n{question}"] == form
    is_appended = [
        form == re.fullmatch(rf"Verb: (\w+)\n{question}", prompt)[1] + ending
        for prompt, form in answers.items()
    ]
    assert 0.4 < sum(is_appended) / len(answers) < 0.6


def test_amounts_of_ten_countries_are_answered_by_their_digits(tmp_path):
    answers = answers_of(TASKS["numbers"](tmp_path))
    texts = {prompt.removeprefix("Amount: ").partition("\n")[0] for prompt in answers}
    for prompt, answer in answers.items():
        assert re.fullmatch(r"[1-9]\d{3,7}\.\d\d", answer)
        assert re.sub(r"\D", "", prompt) == answer.replace(".", "")
    shapes = {re.sub(r"\d+", "0", text) for text in texts}
    for example in ("$0,0.0", "0.0,0\xa0€", "0\u202f0,0\xa0€", "CHF\xa00\u20190.0", "R$\xa00.0,0"):
        assert example in shapes
    assert any(re.fullmatch(r"₹\d\d,\d\d,\d{3}\.\d\d", text) for text in texts)


def test_words_are_of_one_kind_each_and_as_many_of_each(tmp_path):
    answers = answers_of(TASKS["words"](tmp_path))
    kinds = defaultdict(set)
    for word, kind, _ in entries():
        kinds[word].add(WORD_KINDS[kind])
    for prompt, answer in answers.items():
        word = re.fullmatch(r"Word: (\w+)\nPart of speech:", prompt)[1]
        assert kinds[word] == {answer}
    shares = {kind: num / len(answers) for kind, num in Counter(answers.values()).items()}
    assert shares == pytest.approx(dict.fromkeys(WORD_KINDS.values(), 0.25), abs=0.01)


def write_archive(path, ratings):
    """A source distribution as PyPI's, but with these lines as its film reviews."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for kind in KINDS:
            text = "\r\n".join(ratings) if kind == "movieReviewSnippets" else ""
            add_file(archive, f"hutto_ICWSM_2014/{kind}_GroundTruth.txt", text.encode())
    with tarfile.open(path, "w:gz") as archive:
        add_file(archive, RATINGS, inner.getvalue())


def add_file(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def test_sentiment_keeps_clear_short_remarks_and_their_sign(tmp_path):
    ratings = [f"{i}\t{'2.5' if i % 2 else '-1.5'}\tremark {i} &amp; more" for i in range(1500)]
    ratings += ["a\t1.4\tlukewarm", f"b\t3.0\t{'long ' * 30}", "c\t-0.2\tundecided"]
    write_archive(tmp_path / ARCHIVE, ratings)
    answers = answers_of(sentiment_from(tmp_path / ARCHIVE))
    question = "Question: Is the review positive or negative?\nAnswer:"
    assert answers[f"Review: remark 7 & more\n{question}"] == "positive"
    assert answers[f"Review: remark 8 & more\n{question}"] == "negative"
    assert not any(
        word in prompt for prompt in answers for word in ("lukewarm", "long", "undecided")
    )


def test_another_archive_than_the_known_one_is_refused(tmp_path):
    write_archive(tmp_path / ARCHIVE, ["1\t2.5\tforged"])
    with pytest.raises(MissingDataError, match="not the expected file: delete it"):
        load_sentiment(tmp_path)


def test_a_package_that_is_absent_or_incomplete_is_named():
    with pytest.raises(
        MissingDataError, match="no-such-package is not installed: run `make setup`"
    ):
        packaged_file("no-such-package", "data.csv")
    with pytest.raises(MissingDataError, match=r"lemminflect has no absent\.csv"):
        packaged_file("lemminflect", "absent.csv")
