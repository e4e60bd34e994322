"""Metrics against independent references, and against examples worked by hand."""

import random
from dataclasses import replace

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from cyberlm.config.schema import OptionScore, Protocol
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.scores import choose, option_scores, pick_best, score_predictions, validation_metrics
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.prompts import prompt_hash

PREDICTION = Prediction(
    id="q:0",
    hash="0" * 16,
    gold=0,
    n_options=4,
    option_logprobs=(-1.0, -2.0, -3.0, -4.0),
    option_tokens=(1, 1, 1, 1),
    option_chars=(1, 1, 1, 1),
    choice=0,
    gold_nll=1.0,
    generated="A",
    parsed=0,
    reference="A",
    prompt_hash="f" * 16,
)


def predictions(golds: str, choices: str) -> list[Prediction]:
    """One prediction a letter: `predictions("ABC", "ABB")` has two right."""
    return [
        replace(PREDICTION, id=f"q:{i}", hash=f"{i:016x}", gold="ABCDEFGH".index(gold), choice="ABCDEFGH".index(choice))
        for i, (gold, choice) in enumerate(zip(golds, choices, strict=True))
    ]


def score(rows: list[Prediction], protocol: Protocol = Protocol.letter, show_options: bool = True):
    return score_predictions(rows, protocol, show_options)


def test_share_of_no_questions_is_an_error() -> None:
    with pytest.raises(RunError):
        score([])


def test_accuracy_counts_questions_not_letters() -> None:
    # 9 of 10 A right, 0 of 2 B: micro 9/12 = 0.75; macro would be (0.9 + 0) / 2 = 0.45.
    scores = score(predictions("AAAAAAAAAABB", "AAAAAAAAABAA"))
    assert (scores.likelihood.correct, scores.likelihood.n, scores.likelihood.value) == (9, 12, 0.75)
    assert {letter: (share.correct, share.n) for letter, share in scores.per_letter.items()} == {
        "A": (9, 10),
        "B": (0, 2),
    }


def test_accuracy_of_many_questions_is_exact() -> None:
    rng = random.Random(0)
    golds, choices = ("".join(rng.choices("ABCD", k=10180)) for _ in range(2))
    by_hand = sum(gold == choice for gold, choice in zip(golds, choices, strict=True))
    assert score([replace(row, generated=None) for row in predictions(golds, choices)]).likelihood.correct == by_hand


def test_validation_accuracy_is_micro_over_batches() -> None:
    metrics = validation_metrics()
    metrics.update(torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0]))
    metrics.update(torch.tensor([7]), torch.tensor([1]))
    assert float(metrics.compute()["accuracy"]) == 0.75


def test_order_of_questions_does_not_matter() -> None:
    rng = random.Random(1)
    rows = predictions("".join(rng.choices("ABCDE", k=60)), "".join(rng.choices("ABCDE", k=60)))
    rows = [replace(row, gold_nll=rng.random(), parsed=rng.choice([None, 0, 1])) for row in rows]
    before = score(rows)
    rng.shuffle(rows)
    assert replace(score(rows), rouge=None) == replace(before, rouge=None)


def test_unparseable_is_wrong_and_counted() -> None:
    rows = [
        replace(row, generated=text, parsed=parsed)
        for row, text, parsed in zip(predictions("AAAA", "AAAA"), ["A", "B", "?", ""], [0, 1, None, None], strict=True)
    ]
    scores = score(rows)
    assert scores.generation is not None
    assert (scores.generation.correct, scores.generation.n) == (1, 4)
    assert (scores.parse_fail_rate, scores.generation_note) == (0.5, "")


def test_what_was_cut_off_is_counted_apart() -> None:
    rows = [
        replace(row, generated=text, parsed=parsed, finish_reason=reason)
        for row, text, parsed, reason in zip(
            predictions("AAAAA", "AAAAA"),
            ["A", "A, because", "Perhaps", "Let us see:", "To begin"],
            [0, 0, None, None, None],
            ["stop", "length", "stop", "length", "length"],
            strict=True,
        )
    ]
    scores = score(rows)
    assert scores.generation is not None
    assert scores.generation.correct == 2  # cut off behind its answer, it is read as any other
    assert (scores.parse_fail_rate, scores.truncated_rate) == (0.2, 0.4)
    older = score([replace(row, finish_reason=None) for row in rows])
    assert (older.parse_fail_rate, older.truncated_rate) == (0.6, None)


def test_nothing_generated() -> None:
    scores = score([replace(row, generated=None, parsed=None) for row in predictions("AB", "AB")])
    assert (scores.generation, scores.parse_fail_rate, scores.rouge) == (None, None, None)
    assert scores.generation_note == "no answers were generated"


def test_free_answers_have_rouge_but_no_accuracy() -> None:
    rows = [replace(row, generated="a firewall", reference="the firewall") for row in predictions("AB", "AB")]
    scores = score(rows, Protocol.text, show_options=False)
    assert (scores.generation, scores.parse_fail_rate) == (None, None)
    assert "not shown" in scores.generation_note
    assert scores.rouge is not None
    assert scores.rouge.rouge1 == pytest.approx(0.5)
    assert score(rows, Protocol.text, show_options=True).generation is not None


def test_partly_generated_is_an_error() -> None:
    first, second = predictions("AB", "AB")
    with pytest.raises(RunError, match="1 of 2"):
        score([first, replace(second, generated=None)])


def test_gold_nll_is_the_mean_over_questions() -> None:
    rows = [replace(row, gold_nll=nll) for row, nll in zip(predictions("AB", "AB"), (1.0, 2.5), strict=True)]
    assert score(rows).gold_nll == 1.75


TEXTS = [
    ("Encrypt data at rest", "Encrypt the data at rest and in transit"),
    ("Multi-factor authentication (MFA)", "multi factor authentication"),
    ("A firewall filters packets; it does not encrypt.", "It filters packets"),
    ("the the the cat", "the cat sat on the mat"),
    ("", "Something was expected"),
    ("completely different words", "nothing in common"),
    ("café naïve", "cafe naive"),
    ("CVE-2021-44228", "CVE 2021 44228"),
    ("running runs", "run running"),  # a stemmer would count more
    ("B", "B"),
    ("x y z", "z y x"),
    ("words", "…"),
]


@pytest.mark.parametrize(("generated", "reference"), TEXTS)
def test_rouge_equals_rouge_score(generated: str, reference: str) -> None:
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False).score(reference, generated)
    # A second pair, equal, keeps ROUGE-2 defined: means are (score + 1) / 2.
    rows = [
        replace(PREDICTION, generated=generated, reference=reference),
        replace(PREDICTION, generated="two words", reference="two words"),
    ]
    rouge = score(rows).rouge
    assert rouge is not None
    assert rouge.rouge2 is not None
    found = [2 * value - 1 for value in (rouge.rouge1, rouge.rouge2, rouge.rougeL)]
    assert found == pytest.approx([expected[key].fmeasure for key in ("rouge1", "rouge2", "rougeL")], abs=1e-6)


def test_rouge_of_many_equals_rouge_score() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    expected = [scorer.score(reference, generated) for generated, reference in TEXTS]
    rouge = score([replace(PREDICTION, generated=text, reference=reference) for text, reference in TEXTS]).rouge
    assert rouge is not None
    for key, found in {"rouge1": rouge.rouge1, "rouge2": rouge.rouge2, "rougeL": rouge.rougeL}.items():
        assert found == pytest.approx(sum(row[key].fmeasure for row in expected) / len(TEXTS), abs=1e-6)
    assert rouge.note == "2 of 12 references have fewer than two tokens and count 0 in ROUGE-2"


def test_rouge2_of_letters_is_undefined() -> None:
    rouge = score([replace(PREDICTION, generated=text, reference="B)") for text in ("B", "A", "b")]).rouge
    assert rouge is not None
    assert rouge.rouge1 == rouge.rougeL == pytest.approx(2 / 3)
    assert rouge.rouge2 is None
    assert "undefined" in rouge.note


def test_option_scores_by_hand() -> None:
    logprobs, tokens, chars = (-6.0, -4.0, -9.0), (3, 1, 9), (12, 4, 6)
    tensors = [torch.tensor(values) for values in (logprobs, tokens, chars)]
    assert option_scores(*tensors, OptionScore.sum).tolist() == [-6.0, -4.0, -9.0]
    assert option_scores(*tensors, OptionScore.per_token).tolist() == [-2.0, -4.0, -1.0]
    assert option_scores(*tensors, OptionScore.per_char).tolist() == [-0.5, -1.0, -1.5]
    chosen = [choose(logprobs, tokens, chars, how, "0" * 16) for how in OptionScore]
    assert chosen == [(1, False), (2, False), (0, False)]


def test_equal_options_are_chosen_by_the_question_and_counted() -> None:
    """Each of the tied ones equally often over questions, never another, and the same whenever it is asked again."""
    hashes = [prompt_hash(f"question {k}") for k in range(3000)]
    picks = [choose((-1.0, -2.0, -1.0, -1.0), (1,) * 4, (1,) * 4, OptionScore.sum, key) for key in hashes]
    assert all(tied for _, tied in picks)
    counts = [sum(chosen == option for chosen, _ in picks) for option in range(4)]
    assert counts[1] == 0 and all(abs(counts[option] - 1000) < 100 for option in (0, 2, 3))
    assert picks[7] == choose((-1.0, -2.0, -1.0, -1.0), (1,) * 4, (1,) * 4, OptionScore.sum, hashes[7])


def test_validation_picks_as_the_test_does() -> None:
    inf = float("inf")
    scores = torch.tensor([[-1.0, -1.0, -3.0], [-1.0, -1.0, -inf], [-2.0, -1.0, -inf], [-5.0, -5.0, -5.0]])
    chosen, count = pick_best(scores, torch.tensor([0, 5, 9, 5]))
    assert chosen.tolist() == [0, 1, 1, 2]
    assert count.tolist() == [2, 2, 1, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_diverged_model_is_an_error_not_a_choice(bad: float) -> None:
    with pytest.raises(RunError, match="learning_rate"):
        choose((bad, -1.0), (1, 1), (1, 1), OptionScore.per_token, "0" * 16)
