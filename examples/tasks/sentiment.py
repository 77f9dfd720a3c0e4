"""Is a remark positive or negative? From the human ratings that VADER was validated on.

C.J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text", ICWSM 2014: tweets, product and film reviews, each rated by twenty people.
"""

import hashlib
import html
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from examples.packaged import MissingDataError
from examples.tasks.task import Example, Row, Task, split

PROMPT = "Review: {text}\nQuestion: Is the review positive or negative?\nAnswer:"
# Only the source distribution of vaderSentiment carries the ratings.
SOURCE = "vaderSentiment==3.3.2"
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
RATINGS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
KINDS = ("tweets", "movieReviewSnippets", "amazonReviewSnippets")
# Mean ratings go from -4 to 4; nearer to 0 people disagree about the sign.
MIN_RATING = 1.5
MAX_CHARACTERS = 110


def load_sentiment(cache_dir: Path) -> Task:
    """Short remarks that people clearly found positive, or clearly negative."""
    return sentiment_from(_downloaded(cache_dir))


def sentiment_from(archive: Path) -> Task:
    """The task made from the source distribution `archive`."""
    ratings = _ratings(archive)
    return split("sentiment", "whether a remark is positive or negative", 4, _rows(ratings))


def _rows(ratings: list[str]) -> Iterator[Row]:
    for line in ratings:
        # "identifier <tab> mean rating <tab> text"
        _, rating, escaped = line.split("\t", 2)
        text = html.unescape(escaped).strip()
        if abs(float(rating)) >= MIN_RATING and len(text) <= MAX_CHARACTERS:
            answer = "positive" if float(rating) > 0 else "negative"
            yield Row(text, Example(PROMPT.format(text=text), answer))


def _ratings(archive: Path) -> list[str]:
    """The lines of all ground-truth files, read from the archive within the archive."""
    with tarfile.open(archive) as source:
        inner = _member(source, RATINGS)
    with tarfile.open(fileobj=io.BytesIO(inner)) as ratings:
        files = [_member(ratings, f"hutto_ICWSM_2014/{kind}_GroundTruth.txt") for kind in KINDS]
    return [line for file in files for line in file.decode().splitlines()]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise MissingDataError(f"{name} is not a file of {ARCHIVE}: delete the archive and retry")
    return file.read()


def _downloaded(cache_dir: Path) -> Path:
    archive = cache_dir / ARCHIVE
    if not archive.is_file():
        command = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--quiet",
        ]
        options = ["--no-deps", "--no-binary", ":all:", "--dest", str(cache_dir), SOURCE]
        outcome = subprocess.run([*command, *options], check=False)  # noqa: S603 - constant words
        if outcome.returncode:
            raise MissingDataError(f"pip could not download {SOURCE}: see its message above")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != ARCHIVE_SHA256:
        raise MissingDataError(f"{archive} is not the expected file: delete it and try again")
    return archive
