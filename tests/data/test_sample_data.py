"""The embedded sample: its size, its balance, and that no surface feature gives the answer away."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support import MULTIPLE_CHOICE

from cyberlm.data import sources
from cyberlm.data.sources import SAMPLE, load_sources
from cyberlm.data.splits import near_duplicate_clusters, split_questions
from cyberlm.tasks.task import Example

DATASHEET = Path(__file__).parents[2] / "docs" / "data.md"
QUESTIONS = load_sources(SAMPLE, MULTIPLE_CHOICE)[0].questions


def domain(question: Example) -> str:
    return question.topic.split(": ")[0]


def lengths(question: Example) -> tuple[int, list[int]]:
    """Characters of the right option, and of the others."""
    others = [len(option) for k, option in enumerate(question.options) if k != question.gold]
    return len(question.answer), others


def test_nine_domains_of_forty_with_ten_of_each_letter() -> None:
    counts = Counter((domain(question), question.letter) for question in QUESTIONS)
    assert len({name for name, _ in counts}) == 9
    assert list(counts.values()) == [10] * 36
    assert {len(question.options) for question in QUESTIONS} == {4}
    split = split_questions(SAMPLE, load_sources(SAMPLE, MULTIPLE_CHOICE))
    assert {name: len(part) for name, part in split.parts().items()} == {"train": 252, "validation": 36, "test": 72}


def test_ids_and_hashes_do_not_move() -> None:
    assert [question.id for question in QUESTIONS] == [f"sample:{row}" for row in range(1, 361)]
    content = json.dumps([[question.id, question.hash] for question in QUESTIONS]).encode()
    assert hashlib.sha256(content).hexdigest() == "c9573e40251648aae87b7baf1e3d9643516b7441d595401b3b29ea0cfb7150ef"


def shared_words(question: Example, option: str) -> int:
    return len(set(option.lower().split()) & set(question.question.lower().split()))


@pytest.mark.parametrize(
    "rate",
    [
        pytest.param(lambda question, option: len(option), id="longest"),
        pytest.param(lambda question, option: -len(option), id="shortest"),
        pytest.param(lambda question, option: 0, id="always A"),
        pytest.param(shared_words, id="most words of the question"),
    ],
)
def test_rules_that_know_nothing_score_like_chance(rate: Callable[[Example, str], int]) -> None:
    chosen = [max(question.options, key=lambda option, q=question: rate(q, option)) for question in QUESTIONS]
    right = sum(option == question.answer for option, question in zip(chosen, QUESTIONS, strict=True))
    assert right / 360 < 0.30  # 25% of 360 has a standard error of 2.3 points


def test_no_question_repeats_another_and_none_refers_to_its_options() -> None:
    assert len(set(near_duplicate_clusters([question.question for question in QUESTIONS], 0.7))) == 360
    texts = [option.lower() for question in QUESTIONS for option in question.options]
    assert not [text for text in texts if text.startswith(("all of", "none of", "both "))]
    assert all(text.isascii() for question in QUESTIONS for text in (question.question, *question.options))
    assert all(question.question.endswith("?") for question in QUESTIONS)


def test_the_datasheet_gives_the_hash_and_the_figures_of_the_file() -> None:
    page = DATASHEET.read_text("utf-8")
    content = (Path(sources.__file__).parent / "sample.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() in page
    right_longest = sum(right > max(others) for right, others in map(lengths, QUESTIONS))
    right_shortest = sum(right < min(others) for right, others in map(lengths, QUESTIONS))
    assert f"strictly longest in {right_longest} of 360" in page and right_longest / 360 <= 0.25
    assert f"strictly shortest in {right_shortest} of 360" in page
    for name in {domain(question) for question in QUESTIONS}:
        assert f"| {name} | 40 |" in page
