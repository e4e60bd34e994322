"""The split: nothing alike stands on two sides, every question is accounted for, and it can be found again."""

import dataclasses
import hashlib
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import MULTIPLE_CHOICE

from cyberlm.config.schema import DataConfig, OnBadRow
from cyberlm.data import splits
from cyberlm.data.readers import QuestionSet, read_questions
from cyberlm.data.splits import (
    Split,
    near_duplicate_clusters,
    read_manifest,
    select_questions,
    split_questions,
    write_manifest,
)
from cyberlm.runtime.errors import DataError
from cyberlm.tasks.task import Example

DATA_DIR = os.environ.get("CYBERLM_DATA_DIR")
needs_files = pytest.mark.skipif(DATA_DIR is None, reason="CYBERLM_DATA_DIR names no folder with the CyberMetric files")

WORDS = [f"word{i}" for i in range(2000)]


def texts(n: int, seed: int = 0, n_words: int = 12) -> list[str]:
    """Sentences of random words: no two are alike."""
    rng = random.Random(seed)
    return [" ".join(rng.sample(WORDS, n_words)) for _ in range(n)]


def question_set(questions: list[str], name: str = "q") -> QuestionSet:
    rows = (Example(f"{name}:{i}", text, ("yes", "no"), i % 2) for i, text in enumerate(questions, start=1))
    return QuestionSet(name, f"{name}.json", hashlib.sha256(name.encode()).hexdigest(), tuple(rows))


def held_out_set(questions: list[str]) -> QuestionSet:
    return dataclasses.replace(question_set(questions, "h"), held_out=True)


def config(**settings: Any) -> DataConfig:
    return DataConfig(**({"name": "mcq"} | settings))


def ids(split: Split) -> dict[str, list[str]]:
    return {name: [question.id for question in part] for name, part in split.parts().items()}


def assert_nothing_is_lost(split: Split) -> None:
    found = [question.id for part in split.parts().values() for question in part]
    assert len(set(found)) == len(found)
    assert len(found) + sum(split.dropped.values()) == sum(len(source.questions) for source in split.sources)


def word_set(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text.casefold()).split())


def jaccard(left: str, right: str) -> float:
    a, b = word_set(left), word_set(right)
    return len(a & b) / len(a | b)


# --- near-duplicates ---


def test_the_same_words_in_another_dress_are_one_cluster() -> None:
    found = near_duplicate_clusters(
        ["What is a VPN?", "what  is a vpn", "Is a VPN what?", "What is a \uff36\uff30\uff2e ?", "What is a VLAN?"], 1.0
    )
    assert found == [0, 0, 0, 0, 1]


def test_texts_without_a_word_are_alike_only_when_they_are_the_same() -> None:
    assert near_duplicate_clusters(["???", "? ? ?", "!!!", "???", "☃"], 0.8) == [0, 1, 2, 0, 3]
    assert near_duplicate_clusters([], 0.8) == []
    assert near_duplicate_clusters(["one"], 0.8) == [0]


@pytest.mark.parametrize(("threshold", "alike"), [(0.79, True), (0.8, True), (0.81, False)])
def test_the_threshold_is_exact_and_inclusive(threshold: float, alike: bool) -> None:
    left, right = "a b c d e f g h i", "a b c d e f g h j"  # 8 shared of 10
    assert (near_duplicate_clusters([left, right], threshold) == [0, 0]) is alike


def test_likeness_is_passed_on() -> None:
    words = [f"w{i}" for i in range(24)]
    chain = [" ".join(words[i : i + 20]) for i in range(5)]
    assert jaccard(chain[0], chain[1]) > 0.9 > 0.8 > jaccard(chain[0], chain[4])
    assert near_duplicate_clusters(chain, 0.9) == [0] * 5


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
def test_clusters_agree_with_comparing_every_pair(threshold: float) -> None:
    rng = random.Random(1)
    sentences = texts(60)
    for _ in range(200):
        words = rng.choice(sentences).split()
        for _ in range(rng.randint(0, 4)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        sentences.append(" ".join(words))
    parent = list(range(len(sentences)))

    def root(i: int) -> int:
        return i if parent[i] == i else root(parent[i])

    for i, left in enumerate(sentences):
        for j in range(i):
            if jaccard(left, sentences[j]) >= threshold:
                parent[max(root(i), root(j))] = min(root(i), root(j))
    roots = [root(i) for i in range(len(sentences))]
    number = {first: k for k, first in enumerate(dict.fromkeys(roots))}
    assert near_duplicate_clusters(sentences, threshold) == [number[first] for first in roots]


# --- the split without a held-out file ---


def test_fractions_are_met_and_each_part_keeps_the_order_of_the_file() -> None:
    main = question_set(texts(200))
    split = split_questions(config(validation_fraction=0.1, test_fraction=0.2), [main])
    assert {name: len(part) for name, part in split.parts().items()} == {"train": 140, "validation": 20, "test": 40}
    assert (split.sources, split.clusters, split.dropped) == ((main,), 200, {})
    for part in split.parts().values():
        rows = [int(question.id.split(":")[1]) for question in part]
        assert rows == sorted(rows)
    assert_nothing_is_lost(split)


def test_the_seed_decides() -> None:
    main = question_set(texts(100))
    first = split_questions(config(seed=3), [main])
    assert split_questions(config(seed=3), [main]) == first
    assert ids(split_questions(config(seed=4), [main])) != ids(first)


@pytest.mark.parametrize("seed", range(5))
def test_no_cluster_stands_in_two_parts(seed: int) -> None:
    originals = texts(60)
    copies = [f"{text} also" for text in originals[:40] for _ in range(2)]
    main = question_set(originals + copies)
    split = split_questions(config(seed=seed, validation_fraction=0.2), [main])
    clusters = near_duplicate_clusters([question.question for question in main.questions], 0.8)
    cluster = {question.id: clusters[i] for i, question in enumerate(main.questions)}
    sides = [{cluster[question.id] for question in part} for part in split.parts().values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == split.clusters == 60
    assert 26 <= len(split.test) <= 28
    assert 26 <= len(split.validation) <= 28
    assert_nothing_is_lost(split)


def test_a_limit_is_a_seeded_choice_that_is_counted_and_nested() -> None:
    main = question_set(texts(200))
    whole = ids(split_questions(config(), [main]))
    split = split_questions(config(max_train=50, max_validation=5, max_test=10), [main])
    assert split.dropped == {"over data.max_train": 90, "over data.max_validation": 15, "over data.max_test": 30}
    assert_nothing_is_lost(split)
    smaller = split_questions(config(max_train=20), [main])
    assert set(ids(smaller)["train"]) < set(ids(split)["train"]) < set(whole["train"])
    assert ids(smaller)["test"] == whole["test"], "a limit on one part moves no other"
    assert split_questions(config(max_train=1000), [main]).dropped == {}


@pytest.mark.parametrize(
    ("questions", "settings", "expected"),
    [
        (
            texts(20),
            {"validation_fraction": 0.0},
            "leaves the validation set empty; the best checkpoint is chosen by it",
        ),
        (texts(20), {"validation_fraction": 0.0}, "data.validation_fraction=0.1"),
        (texts(20), {"test_fraction": 0.0}, "leaves the test set empty; the results are of it"),
        (texts(2), {}, "none of 2 questions is left for training"),
        (["the same question"] * 20, {}, "leaves the validation set empty"),
        (["the same question"] * 20, {}, "leaves the test set empty"),
    ],
)
def test_an_empty_part_is_refused(questions: list[str], settings: dict[str, float], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        split_questions(config(**settings), [question_set(questions)])
    assert expected in caught.value.screen()


# --- the split with a held-out file ---


def test_all_of_the_held_out_file_is_the_test_and_what_it_shares_leaves_training() -> None:
    shared, ours, theirs = texts(20, seed=1), texts(80, seed=2), texts(30, seed=3)
    main = question_set(ours + shared[:10] + [f"{text} also" for text in shared[10:]])
    held_out = held_out_set(theirs + shared)
    split = split_questions(config(validation_fraction=0.25, test_fraction=0.0), [main, held_out])
    assert split.test == held_out.questions
    assert split.dropped == {"near-duplicate of a test question": 20}
    assert {question.question for question in split.train + split.validation} == set(ours)
    assert (len(split.validation), len(split.train)) == (20, 60)
    assert split.sources == (main, held_out)
    assert_nothing_is_lost(split)


def test_what_a_dropped_test_question_shares_still_leaves_training() -> None:
    shared = texts(20)
    main, held_out = question_set(shared + texts(40, seed=1)), held_out_set(shared)
    split = split_questions(config(max_test=1), [main, held_out])
    assert split.dropped == {"near-duplicate of a test question": 20, "over data.max_test": 19}


def test_an_evaluation_asks_the_test_questions_that_training_holds_out() -> None:
    settings = config(max_test=5, seed=3)
    main, held_out = question_set(texts(60, seed=1)), held_out_set(texts(40, seed=2))
    chosen = splits.test_questions(settings, held_out.questions)
    assert chosen == split_questions(settings, [main, held_out]).test
    assert chosen != held_out.questions[:5] and len(chosen) == 5
    assert splits.test_questions(config(), held_out.questions) == held_out.questions


def test_a_held_out_file_that_holds_everything_is_refused() -> None:
    questions = texts(20)
    with pytest.raises(DataError) as caught:
        split_questions(config(), [question_set(questions), held_out_set(questions)])
    assert "none of 0 questions (20 more are near-duplicates of test questions) is left" in caught.value.screen()
    assert len(caught.value.problems) == 1


# --- the manifest ---


@pytest.fixture
def split() -> Split:
    source = question_set(texts(40))
    source = dataclasses.replace(source, skipped=("row 3 (line 5): question is empty",), whitespace_normalised=2)
    return split_questions(config(max_train=20), [source])


def test_the_manifest_holds_all_that_decided_the_split(split: Split, tmp_path: Path) -> None:
    path = tmp_path / "split_manifest.json"
    sha256 = write_manifest(split, config(max_train=20), path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = read_manifest(path)
    parts = manifest.pop("parts")
    assert manifest == {
        "version": 1,
        "seed": 0,
        "settings": {
            "on_bad_row": "error",
            "validation_fraction": 0.1,
            "test_fraction": 0.2,
            "near_duplicate_jaccard": 0.8,
            "max_train": 20,
            "max_validation": None,
            "max_test": None,
        },
        "sources": [
            {
                "name": "q",
                "sha256": split.sources[0].sha256,
                "source": "q.json",
                "questions": 40,
                "whitespace_normalised": 2,
                "skipped": ["row 3 (line 5): question is empty"],
            }
        ],
        "clusters": 40,
        "dropped": {"over data.max_train": 8},
    }
    assert list(parts) == ["train", "validation", "test"]
    assert parts["test"] == [{"id": question.id, "hash": question.hash} for question in split.test]


def test_the_same_split_gives_the_same_bytes(split: Split, tmp_path: Path) -> None:
    again = split_questions(config(max_train=20), [split.sources[0]])
    written = [write_manifest(item, config(max_train=20), tmp_path / f"{i}") for i, item in enumerate((split, again))]
    assert written[0] == written[1]
    other = split_questions(config(seed=1), [split.sources[0]])
    assert write_manifest(other, config(seed=1), tmp_path / "2") != written[0]


def test_a_split_is_found_again_from_its_manifest(split: Split, tmp_path: Path) -> None:
    write_manifest(split, config(), tmp_path / "m.json")
    manifest = read_manifest(tmp_path / "m.json")
    for name, part in split.parts().items():
        assert select_questions(split.sources, [row["hash"] for row in manifest["parts"][name]]) == part


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, "version is 2; allowed: 1"),
        ({"parts": []}, "parts is []; allowed: an object"),
        ({"parts": {"train": [{"id": "a", "hash": "b"}]}}, "parts.validation is missing"),
        ({"parts": {"train": []}}, "parts.train: List should have at least 1 item"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(
    split: Split, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "m.json"
    write_manifest(split, config(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert expected in caught.value.screen()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, None])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"m\.json"):
        read_manifest(path)


# --- finding questions again ---


def test_equal_rows_are_found_as_rows_of_their_own_and_of_the_held_out_file_first() -> None:
    main, held_out = question_set(["x", "y", "x"]), question_set(["x", "z"], "h")
    assert main.questions[0].hash == main.questions[2].hash == held_out.questions[0].hash
    x, z = (question.hash for question in held_out.questions)
    assert [question.id for question in select_questions([main, held_out], [z, x])] == ["h:2", "h:1"]
    assert [question.id for question in select_questions([main], [x, x])] == ["q:1", "q:3"]


def test_a_missing_question_is_an_error() -> None:
    main = question_set(["x", "y"])
    with pytest.raises(DataError) as caught:
        select_questions([main], [main.questions[0].hash, "0123456789abcdef", main.questions[0].hash])
    screen = caught.value.screen()
    assert f"2 of 3 questions are not in q (sha256 {main.sha256})" in screen
    assert "no question has the hash 0123456789abcdef" in screen


# --- the real files ---


def real(size: int) -> QuestionSet:
    name = f"CyberMetric-{size}-v1"
    return read_questions(Path(str(DATA_DIR)) / f"{name}.json", name, OnBadRow.error, MULTIPLE_CHOICE)


@needs_files
def test_the_130_questions_that_500_and_2000_share_leave_training() -> None:
    main, held_out = real(2000), dataclasses.replace(real(500), held_out=True)
    split = split_questions(config(), [main, held_out])
    trained = {question.question for question in split.train + split.validation}
    shared = {question.question for question in main.questions} & {question.question for question in held_out.questions}
    assert len(shared) == 130
    assert not trained & shared
    assert split.dropped["near-duplicate of a test question"] >= 130
    assert split.test == held_out.questions
    tested, seen = [word_set(question.question) for question in split.test], [word_set(text) for text in trained]
    assert max(len(a & b) / len(a | b) for a in tested for b in seen) < 0.8
    assert_nothing_is_lost(split)


@needs_files
def test_10000_questions_are_clustered_in_seconds() -> None:
    rng = random.Random(0)
    questions = [question.question for question in real(2000).questions]
    words = sorted({word for question in questions for word in question.split()})
    while len(questions) < 10_000:
        changed = questions[rng.randrange(2000)].split()
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.choice(words)
        questions.append(" ".join(changed))
    begun = time.monotonic()
    clusters = near_duplicate_clusters(questions, 0.8)
    assert time.monotonic() - begun < 20
    sizes = Counter(clusters)
    assert 2000 < len(sizes) < 10_000
    assert max(sizes.values()) < 50


def test_groups_stay_on_one_side_and_their_near_duplicates_are_left_out() -> None:
    sentences = [f"sentence {k} of {chr(97 + k % 9) * 3} number {k * 7}" for k in range(60)]
    sentences[1::6] = ["the same words in every report"] * 10
    reports = [f"report {k // 3}" for k in range(60)]
    questions = tuple(
        Example(f"q:{k}", text, ("a", "b"), 0, group=report)
        for k, (text, report) in enumerate(zip(sentences, reports, strict=True))
    )
    split = split_questions(config(), [dataclasses.replace(question_set(sentences), questions=questions)])
    sides = {name: {question.group for question in part} for name, part in split.parts().items()}
    assert not sides["train"] & sides["test"] and not sides["validation"] & (sides["train"] | sides["test"])
    asked = {question.question for question in (*split.test, *split.validation)}
    assert not asked & {question.question for question in split.train}
    assert sum(split.dropped.values()) + sum(map(len, split.parts().values())) == 60
