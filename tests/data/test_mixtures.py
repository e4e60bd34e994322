"""Mixtures: training questions of several sources, in shares; the test questions of each source apart."""

import dataclasses
from collections import Counter

import pytest
from test_splits import config, held_out_set, question_set, texts

from cyberlm.config.schema import DataConfig
from cyberlm.data.readers import QuestionSet
from cyberlm.data.splits import Split, read_manifest, split_questions, write_manifest
from cyberlm.runtime.errors import DataError


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
