"""ROUGE against the rouge_score package."""

from dataclasses import replace

import pytest
from rouge_score.rouge_scorer import RougeScorer
from statistics_support import answered, measured, question

from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.metrics.rouge import rouge
from cyberlm.evaluation.predictions import ROUGE

TEXTS = [
    ("Encrypt data at rest", "Encrypt the data at rest and in transit"),
    ("Multi-factor authentication (MFA)", "multi factor authentication"),
    ("the the the cat", "the cat sat on the mat"),
    ("", "Something was expected"),
    ("café naïve", "cafe naive"),
    ("CVE-2021-44228", "CVE 2021 44228"),
    ("running runs", "run running"),  # a stemmer would count more
    ("B", "B"),
    ("x y z", "z y x"),
    ("words", "…"),
]


def rouge_of(texts: list[tuple[str | None, str]]) -> dict[str, Metric]:
    asked = [question(k, 0) for k in range(len(texts))]
    rows = [
        replace(answered(q, 0), generated=own, reference=right) for q, (own, right) in zip(asked, texts, strict=True)
    ]
    return measured(rouge, asked, rows)


def test_rouge_equals_rouge_score() -> None:
    scorer = RougeScorer(list(ROUGE), use_stemmer=False)
    for texts in (*([text, ("two words", "two words")] for text in TEXTS), TEXTS):
        expected = [scorer.score(reference, generated) for generated, reference in texts]
        found = rouge_of(texts)
        for name in ROUGE:
            mean = sum(row[name].fmeasure for row in expected) / len(texts)
            assert found[name].value == pytest.approx(mean, abs=1e-6)


def test_short_references_are_told_and_the_scale_is_that_of_right_and_of_wrong_answers() -> None:
    found = rouge_of(list(TEXTS))
    assert found["rouge2"].note == "2 of 10 references have fewer than two tokens and count 0 in ROUGE-2"
    letters = rouge_of([("B", "B)"), ("A", "B)"), ("b", "B)")])
    assert letters["rouge1"].value == letters["rougeL"].value == pytest.approx(2 / 3)
    assert letters["rouge2"].value is None and "undefined" in letters["rouge2"].note
    found = rouge_of([("A", "A"), ("B", "A")])
    assert (found["rouge1_oracle"].value, found["rouge1_always_wrong"].value) == (1.0, 0.0)
    scale = "right answers themselves: 1.0000, undefined, 1.0000; of always a wrong option: 0.0000, undefined, 0.0000"
    assert f"ROUGE-1/2/L of the {scale}" in found["rouge_short_references"].note
    assert rouge_of([(None, "A")]) == {}
