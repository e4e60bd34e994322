"""The split: nothing alike stands on two sides, every question is accounted for, and it can be found again."""

import dataclasses
import hashlib
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cyberlm.config.schema import DataConfig
from cyberlm.data.readers import QuestionSet
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


def assert_nothing_is_lost(split: Split) -> None:
    found = [question.id for part in split.parts().values() for question in part]
    assert len(set(found)) == len(found)
    assert len(found) + sum(split.dropped.values()) == sum(len(source.questions) for source in split.sources)


def word_set(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text.casefold()).split())


def jaccard(left: str, right: str) -> float:
    a, b = word_set(left), word_set(right)
    return len(a & b) / len(a | b)


def test_near_duplicates_by_hand() -> None:
    """The same words in another dress; texts without a word are alike only when they are the same."""
    dressed = ["A VPN is what?", "a vpn  is what", "Is a VPN what?", "A \uff36\uff30\uff2e is what?", "A VLAN is what?"]
    assert near_duplicate_clusters(dressed, 1.0) == [0, 0, 0, 0, 1]
    assert near_duplicate_clusters(["???", "? ? ?", "!!!", "???", "☃"], 0.8) == [0, 1, 2, 0, 3]
    assert near_duplicate_clusters([], 0.8) == []
    assert near_duplicate_clusters(["one"], 0.8) == [0]


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_clusters_agree_with_comparing_every_pair(threshold: float) -> None:
    """Likeness is passed on: a cluster is what any chain of alike pairs joins."""
    rng = random.Random(1)
    sentences = texts(60)
    for _ in range(200):
        words = rng.choice(sentences).split()
        for _ in range(rng.randint(0, 4)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        sentences.append(" ".join(words))
    labels = list(range(len(sentences)))
    for i, j in itertools.combinations(labels, 2):
        if jaccard(sentences[i], sentences[j]) >= threshold:
            labels = [labels[i] if label == labels[j] else label for label in labels]
    number = {label: k for k, label in enumerate(dict.fromkeys(labels))}
    assert near_duplicate_clusters(sentences, threshold) == [number[label] for label in labels]


def test_fractions_and_limits_are_met_and_each_part_keeps_the_order_of_the_file() -> None:
    main = question_set(texts(200))
    whole = split_questions(config(validation_fraction=0.1, test_fraction=0.2), [main])
    assert {name: len(part) for name, part in whole.parts().items()} == {"train": 140, "validation": 20, "test": 40}
    assert (whole.sources, whole.clusters, whole.dropped) == ((main,), 200, {})
    for part in whole.parts().values():
        rows = [int(question.id.split(":")[1]) for question in part]
        assert rows == sorted(rows)
    limited = split_questions(config(max_train=50, max_validation=5, max_test=10), [main])
    assert limited.dropped == {"over data.max_train": 90, "over data.max_validation": 15, "over data.max_test": 30}
    smaller = split_questions(config(max_train=20), [main])
    assert set(smaller.train) < set(limited.train) < set(whole.train)
    assert smaller.test == whole.test, "a limit on one part moves no other"
    assert split_questions(config(max_train=1000), [main]).dropped == {}
    for split in (whole, limited):
        assert_nothing_is_lost(split)


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


@pytest.mark.parametrize(
    ("sources", "settings", "expected"),
    [
        (
            [question_set(texts(20))],
            {"validation_fraction": 0.0},
            ("validation set empty; the best checkpoint is chosen by it", "data.validation_fraction=0.1"),
        ),
        ([question_set(texts(20))], {"test_fraction": 0.0}, ("leaves the test set empty; the results are of it",)),
        ([question_set(texts(2))], {}, ("none of 2 questions is left for training",)),
        ([question_set(["same"] * 20)], {}, ("leaves the validation set empty", "leaves the test set empty")),
        (
            [question_set(texts(20)), held_out_set(texts(20))],
            {},
            ("none of 0 questions (20 more are near-duplicates of test questions) is left",),
        ),
    ],
)
def test_an_empty_part_is_refused(
    sources: list[QuestionSet], settings: dict[str, float], expected: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        split_questions(config(**settings), sources)
    assert all(words in caught.value.screen() for words in expected)


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
    limited = split_questions(config(max_test=1), [main, held_out])
    assert limited.dropped == {"near-duplicate of a test question": 20, "over data.max_test": 49}


@pytest.fixture
def split() -> Split:
    source = question_set(texts(40))
    source = dataclasses.replace(source, skipped=("row 3 (line 5): question is empty",), whitespace_normalised=2)
    return split_questions(config(max_train=20), [source])


def test_the_manifest_holds_all_that_decided_the_split_which_is_found_again(split: Split, tmp_path: Path) -> None:
    path = tmp_path / "split_manifest.json"
    sha256 = write_manifest(split, config(max_train=20), path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    again = split_questions(config(max_train=20), [split.sources[0]])
    assert write_manifest(again, config(max_train=20), path) == sha256
    assert split_questions(config(seed=1, max_train=20), [split.sources[0]]).test != split.test
    manifest = read_manifest(path)
    for name, part in split.parts().items():
        assert select_questions(split.sources, [row["hash"] for row in manifest["parts"][name]]) == part
    parts, settings, (source,) = (manifest.pop(name) for name in ("parts", "settings", "sources"))
    assert manifest == {"version": 1, "seed": 0, "clusters": 40, "dropped": {"over data.max_train": 8}}
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.2, "near_duplicate_jaccard": 0.8}
    limits = {"max_train": 20, "max_validation": None, "max_test": None}
    assert settings == {"on_bad_row": "error"} | fractions | limits
    where = {"name": "q", "sha256": split.sources[0].sha256, "source": "q.json"}
    skipped = ["row 3 (line 5): question is empty"]
    assert source == where | {"questions": 40, "whitespace_normalised": 2, "skipped": skipped}
    assert list(parts) == ["train", "validation", "test"]
    assert parts["test"] == [{"id": question.id, "hash": question.hash} for question in split.test]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, "version is 2; allowed: 1"),
        ({"parts": []}, "parts is []; allowed: an object"),
        ({"parts": {"train": [{"id": "a", "hash": "b"}]}}, "parts.validation is missing"),
        ({"parts": {"train": []}}, "parts.train: List should have at least 1 item"),
        *((content, "m.json") for content in (b"", b"{", b"[]", b"\xff", b"[" * 100_000)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_manifest_of_another_shape_is_refused(
    split: Split, tmp_path: Path, change: dict[str, Any] | bytes, expected: str
) -> None:
    path = tmp_path / "m.json"
    with pytest.raises(DataError, match=r"m\.json"):
        read_manifest(path)
    write_manifest(split, config(), path)
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change).encode()
    path.write_bytes(change)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert expected in caught.value.screen()


def test_questions_are_found_by_their_hashes() -> None:
    """Equal rows as rows of their own, and those of the held-out file first."""
    main, held_out = question_set(["x", "y", "x"]), question_set(["x", "z"], "h")
    assert main.questions[0].hash == main.questions[2].hash == held_out.questions[0].hash
    x, z = (question.hash for question in held_out.questions)
    assert [question.id for question in select_questions([main, held_out], [z, x])] == ["h:2", "h:1"]
    assert [question.id for question in select_questions([main], [x, x])] == ["q:1", "q:3"]
    with pytest.raises(DataError) as caught:
        select_questions([main], [x, "0123456789abcdef", z])
    screen = caught.value.screen()
    assert f"2 of 3 questions are not in q (sha256 {main.sha256})" in screen
    assert "no question has the hash 0123456789abcdef" in screen


def test_groups_stay_on_one_side_and_their_near_duplicates_are_left_out() -> None:
    sentences = [f"sentence {k} of {chr(97 + k % 9) * 3} number {k * 7}" for k in range(60)]
    sentences[1::6] = ["the same words in every report"] * 10
    questions = tuple(Example(f"q:{k}", sentences[k], ("a", "b"), 0, group=f"report {k // 3}") for k in range(60))
    split = split_questions(config(), [dataclasses.replace(question_set(sentences), questions=questions)])
    sides = {name: {question.group for question in part} for name, part in split.parts().items()}
    assert not sides["train"] & sides["test"] and not sides["validation"] & (sides["train"] | sides["test"])
    asked = {question.question for question in (*split.test, *split.validation)}
    assert not asked & {question.question for question in split.train}
    assert sum(split.dropped.values()) + sum(map(len, split.parts().values())) == 60


def of(source: str, questions: list[str], *, held_out: bool = False) -> QuestionSet:
    made = held_out_set(questions) if held_out else question_set(questions, source)
    return dataclasses.replace(made, questions=tuple(dataclasses.replace(q, source=source) for q in made.questions))


def mixed(weights: tuple[float, ...] = (), **settings: object) -> DataConfig:
    return config(mix=["a", "b"], weights=list(weights), **settings)


def counts(split: Split) -> dict[str, Counter[str]]:
    return {name: Counter(item.source for item in part) for name, part in split.parts().items()}


A, B = of("a", texts(200, seed=1)), of("b", texts(100, seed=2))


def test_without_weights_each_source_is_split_as_it_would_be_alone() -> None:
    split = split_questions(mixed(), [A, B])
    assert counts(split) == {
        "train": {"a": 140, "b": 70},
        "validation": {"a": 20, "b": 10},
        "test": {"a": 40, "b": 20},
    }
    assert split.dropped == {} and split == split_questions(mixed(), [A, B])
    assert split.sources == (A, B) and [item.source for item in split.test] == ["a"] * 40 + ["b"] * 20
    held_out = counts(split_questions(mixed(), [A, of("a", texts(30, seed=4), held_out=True), B]))
    assert (held_out["test"], held_out["train"]) == ({"a": 30, "b": 20}, {"a": 180, "b": 70}), "of its source alone"
    with pytest.raises(DataError) as caught:
        split_questions(mixed(), [A, of("b", ["the same words every time"] * 30)])
    assert "no test questions of b" in caught.value.screen()


@pytest.mark.parametrize(
    ("weights", "most", "drawn"),
    [
        ((2, 1), None, {"a": 140, "b": 70}),  # all that are there
        ((1, 1), None, {"a": 70, "b": 70}),
        ((1, 4), None, {"a": 17, "b": 70}),
        ((0.5, 0.5), 50, {"a": 25, "b": 25}),
        ((3, 1), 40, {"a": 30, "b": 10}),
    ],
)
def test_weights_draw_as_many_training_questions_as_there_are_in_these_shares(weights, most, drawn, tmp_path) -> None:
    settings = mixed(weights, max_train=most)
    split = split_questions(settings, [A, B])
    assert counts(split)["train"] == drawn
    left = f"not drawn, by data.weights{' and data.max_train' if most else ''}"
    assert split.dropped.get(left, 0) == 210 - sum(drawn.values())
    assert counts(split)["test"] == {"a": 40, "b": 20}, "weights are of training alone"
    assert split.train == split_questions(settings, [A, B]).train
    assert set(split.train) <= set(split_questions(mixed(), [A, B]).train)
    write_manifest(split, settings, tmp_path / "m.json")
    manifest = read_manifest(tmp_path / "m.json")
    assert (manifest["settings"]["mix"], manifest["settings"]["weights"]) == (["a", "b"], list(weights))
    assert all(row["source"] == row["id"].partition(":")[0] for part in manifest["parts"].values() for row in part)


def test_what_one_source_shares_with_the_test_of_another_leaves_training() -> None:
    shared = texts(60, seed=3)
    split = split_questions(mixed(), [of("a", texts(40, seed=1) + shared), of("b", [f"{text} too" for text in shared])])
    tested = {item.question.removesuffix(" too") for item in (*split.test, *split.validation)}
    assert not tested & {item.question.removesuffix(" too") for item in split.train}
    found = sum(map(len, split.parts().values())) + sum(split.dropped.values())
    assert found == 160 and split.dropped["near-duplicate of a test question"] > 0
