"""Evidence: written and read as typed records, documented, and told in words that fit what is wrong."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from statistics_support import answered, predictions

from cyberlm.config import OptionScore, Protocol
from cyberlm.errors import RunError
from cyberlm.evidence import (
    Answers,
    Evidence,
    Setting,
    collect,
    compare,
    read_evidence,
    sentences,
    summary,
    write_evidence,
)
from cyberlm.evidence.collecting import ModelEvidence, OptionScoring, RougeContext
from cyberlm.floors import Finding, FloorReport
from cyberlm.leaks import CleanAccuracy, Leak, LeakAudit
from cyberlm.records import Question, RougeScores
from cyberlm.statistics import (
    AccuracyInterval,
    Calibration,
    CalibrationReport,
    Debiasing,
    LetterBias,
    NoiseSensitivity,
    PairComparison,
    PermutationScores,
    Suspect,
    accuracy_interval,
)

LETTER = Setting(Protocol.letter, OptionScore.sum)
TEXT = Setting(Protocol.text, OptionScore.per_token, options_shown=False)


def some_questions(count: int, seed: int = 0) -> list[Question]:
    """Questions whose words, options and gold letters tell nothing of each other."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("abcdefghijklmnop", k=6)) for _ in range(400)]
    return [
        Question(
            f"q:{k:04}",
            " ".join(chance.sample(words, 8)),
            tuple(" ".join(chance.sample(words, chance.randint(1, 4))) for _ in range(4)),
            chance.randrange(4),
        )
        for k in range(count)
    ]


def answers(test: Sequence[Question], choose: Callable[[Question], int], generate: bool = False) -> Answers:
    return Answers([answered(q, choose(q), parsed=choose(q) if generate else None) for q in test])


def full_evidence() -> Evidence:
    """Every optional part is there."""
    test, train = some_questions(40), some_questions(30, seed=1)
    rows = answers(test, lambda q: q.gold if int(q.id[2:]) % 3 else 0, generate=True)
    turned = [[row, *(replace(row, gold=(row.gold - k) % 4) for k in (1, 2, 3))] for row in rows.plain]
    everything = replace(
        rows,
        rotated=turned,
        skipped=2,
        prior_sample=frozenset(row.hash for row in rows.plain[:4]),
        blind=rows.plain,
        validation=answers(train, lambda q: q.gold).plain,
    )
    suspects = (
        Suspect(test[0].hash, "another is right", "ABCDA"[test[0].gold + 1]),
        Suspect(test[1].hash, "none is right", None),
    )
    leaked = [*train[1:], test[5]]
    return collect({"one": everything, "two": rows}, replace(LETTER, suspects=suspects), test, leaked)


# ------------------------------------------------------------------------------------------- written and read


def test_evidence_is_read_as_it_was_written(tmp_path: Path) -> None:
    evidence = full_evidence()
    one = evidence.models["one"]
    assert None not in (one.permutations, one.debiasing, one.noise, one.clean, one.calibration.scaled, evidence.rouge)
    write_evidence(evidence, tmp_path)
    assert read_evidence(tmp_path) == evidence
    test = some_questions(10)
    small = collect({"base": answers(test, lambda q: 0)}, TEXT, test)
    write_evidence(small, tmp_path)
    assert read_evidence(tmp_path) == small and small.rouge is None and small.leaks is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda value: value.update(schema_version=9), "schema_version is 9"),
        (lambda value: value.pop("models"), "models is missing"),
        (lambda value: value.update(modles={}), r"modles is not a field. Did you mean 'models'\?"),
        (lambda value: value["models"]["one"]["likelihood"].update(n="40"), r'models\.one\.likelihood\.n is "40"'),
        (lambda value: value["models"]["two"]["letters"].pop("recall"), r"models\.two\.letters\.recall is missing"),
        (lambda value: value["pairs"][0].update(lost=[1]), r"pairs\[0\]\.lost\[0\] is 1"),
        (
            lambda value: value["leaks"]["leaks"].update(ngram=[{"test": "a"}]),
            r"ngram\[0\]\.train is missing",
        ),
    ],
)
def test_wrong_fields_are_named(damage: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    write_evidence(full_evidence(), tmp_path)
    value = json.loads((tmp_path / "evidence.json").read_text())
    damage(value)
    (tmp_path / "evidence.json").write_text(json.dumps(value))
    with pytest.raises(RunError, match=message):
        read_evidence(tmp_path)


def test_missing_and_torn_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"There is no .*evidence\.json"):
        read_evidence(tmp_path)
    write_evidence(full_evidence(), tmp_path)
    text = (tmp_path / "evidence.json").read_text()
    (tmp_path / "evidence.json").write_text(text[:300])
    with pytest.raises(RunError, match="complete JSON"):
        read_evidence(tmp_path)


RECORDS = (
    *(Evidence, ModelEvidence, AccuracyInterval, OptionScoring, LetterBias, CalibrationReport, Calibration),
    *(FloorReport, CleanAccuracy, Finding, PermutationScores, Debiasing, NoiseSensitivity, PairComparison),
    *(LeakAudit, Leak, RougeContext),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_page_has_a_table_of_exactly_the_fields(record: type) -> None:
    page = (Path(__file__).parent.parent / "docs" / "evidence.md").read_text("utf-8")
    heading = f"(`{record.__name__}`)\n"
    assert page.count(heading) == 1, f"docs/evidence.md has no table for {record.__name__}"
    section = page.split(heading)[1].split("\n#")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name.strip(" `") for cell in cells for name in cell.split(",")]
    assert named == [field.name for field in fields(record)]


# ---------------------------------------------------------------------------------------- options and ROUGE


def test_every_option_score_by_hand() -> None:
    """Sums choose the first option, per token the second, per character the third."""
    question = Question("q:1", "Which?", ("a", "b b b", "c c c c c c c c c"), 2)
    row = replace(
        answered(question, 1), option_logprobs=(-2.0, -3.0, -4.5), option_tokens=(1, 3, 4), option_chars=(1, 5, 17)
    )
    rows = [row, replace(row, id="q:2", hash="2" * 16, gold=0), replace(row, id="q:3", hash="3" * 16, gold=0)]
    test = [question, *(replace(question, id=r.id, gold=r.gold) for r in rows[1:])]
    rows = [replace(r, hash=q.hash) for r, q in zip(rows, test, strict=True)]
    found = collect({"m": Answers(rows)}, TEXT, test).models["m"]
    assert found.option_scoring == OptionScoring(
        sum=accuracy_interval([False, True, True]),
        per_token=accuracy_interval([False, False, False]),
        per_char=accuracy_interval([True, False, False]),
    )
    assert found.likelihood == found.option_scoring.per_token  # what `choice` was made with
    assert collect({"m": Answers(rows)}, LETTER, test).models["m"].option_scoring is None


def test_option_scores_stand_in_the_table() -> None:
    test = some_questions(100)
    rows = {row[0]: row[1:] for row in summary(collect({"m": answers(test, lambda q: q.gold)}, TEXT, test))}
    assert rows["accuracy, options by per_char"] == ["100.0% (96-100%)"]


def test_rouge_has_its_ends() -> None:
    test = [
        Question("q:1", "First?", ("red fish", "blue fish", "grey cat", "dog"), 0),
        Question("q:2", "Second?", ("one", "two", "three four", "five"), 3),
    ]
    rows = [replace(answered(q, 0), generated="dog", reference=q.answer) for q in test]
    context = collect({"m": Answers(rows)}, TEXT, test).rouge
    assert context is not None
    # "red fish" against itself is 1 in all; "five" has no pair of words
    assert (context.oracle.rouge1, context.oracle.rouge2, context.oracle.rougeL) == (1.0, 0.5, 1.0)
    # "blue fish" shares a word of two with "red fish", "one" (behind the last comes the first) nothing with "five"
    assert (context.always_wrong.rouge1, context.always_wrong.rouge2) == (0.25, 0.0)
    assert context.share_refs_lt2_tokens == 0.5
    told = " ".join(sentences(collect({"m": Answers(rows)}, TEXT, test)))
    assert "of always a wrong option: 0.2500, 0.0000, 0.2500 (2 references, 50.0% with fewer than two tokens)" in told


def test_rouge_of_letters_is_undefined_for_the_oracle_too() -> None:
    test = some_questions(8)
    context = collect({"m": answers(test, lambda q: q.gold, generate=True)}, LETTER, test).rouge
    assert context is not None and context.share_refs_lt2_tokens == 1.0
    assert context.oracle == RougeScores(1.0, None, 1.0, 8, context.oracle.note)
    assert context.always_wrong == RougeScores(0.0, None, 0.0, 8, context.oracle.note)


# --------------------------------------------------------------------------------------- what is told in words


def said(choose: Callable[[Question], int], key: Callable[[Question], int] | None = None) -> str:
    """What is said about a model that answers 300 questions, under another key where one is given."""
    test = some_questions(300)
    rows = answers(test, choose).plain
    if key is not None:
        test = [replace(q, gold=key(q)) for q in test]
        rows = [replace(r, hash=q.hash, gold=q.gold) for r, q in zip(rows, test, strict=True)]
    evidence = collect({"model": Answers(rows)}, LETTER, test)
    return " ".join(s for s in sentences(evidence) if "calibrat" not in s)


def test_a_sound_model_gets_no_diagnosis() -> None:
    assert said(lambda q: q.gold if int(q.id[2:]) % 4 else (q.gold + 1 + int(q.id[2:]) % 3) % 4) == ""


def test_a_key_shifted_by_a_letter_is_told() -> None:
    told = said(lambda q: q.gold, key=lambda q: (q.gold + 1) % 4)
    assert told == (
        "model: The answer key looks shifted by one letter: accuracy is 0.0%, far below the 25.0% of chance, "
        "but 100.0% against the key moved one letter back (B to A)."
    )


def test_a_model_that_always_says_a_is_told() -> None:
    told = said(lambda q: 0)
    assert told.startswith("model: The model answers A to 100.0% of the questions, where A is right in ")
    assert "shifted" not in told and "longest" not in told
    test = some_questions(300)
    letters = collect({"m": answers(test, lambda q: 0)}, LETTER, test).models["m"].letters
    assert letters.recall == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0}
    assert letters.rstd == pytest.approx((3 / 16) ** 0.5)


def test_a_model_that_goes_for_the_longest_option_is_told() -> None:
    told = said(lambda q: max(range(4), key=lambda k: len(q.options[k])))
    assert "The model chooses the longest option in" in told and "where the longest is right in" in told
    assert "shifted" not in told and "answers A" not in told


def test_a_model_with_wrong_confidence_is_told() -> None:
    test = some_questions(300)
    rows = [answered(q, 0, log_probs=(-0.01, -9.0, -9.0, -9.0)) for q in test]
    assert any(
        "model: Confidence is badly calibrated" in sentence
        for sentence in sentences(collect({"model": Answers(rows)}, LETTER, test))
    )


def test_leaked_questions_are_told_with_their_accuracy() -> None:
    test, train = some_questions(50), some_questions(20, seed=1)
    told = " ".join(sentences(collect({"m": answers(test, lambda q: q.gold)}, LETTER, test, [*train, test[7]])))
    assert "Leak audit: 1 exact and 0 near copies of training questions among 50 test questions." in told
    assert "m: Of the questions that a leak check flagged 100.0% (21-100%) are right (1 of 1)" in told


def test_a_difference_is_called_what_it_is() -> None:
    test = some_questions(200)
    weak = answers(test, lambda q: q.gold if int(q.id[2:]) < 100 else (q.gold + 1) % 4)
    same = answers(test, lambda q: q.gold if int(q.id[2:]) < 101 else (q.gold + 1) % 4)
    strong = answers(test, lambda q: q.gold)
    told = sentences(collect({"weak": weak, "same": same, "strong": strong}, LETTER, test))
    pairs = {sentence.split(":")[0]: sentence for sentence in told if " minus " in sentence}
    assert len(pairs) == 3
    assert "+0.5 points" in pairs["same minus weak"] and ", not significant (Holm p = 1;" in pairs["same minus weak"]
    assert "of 200 questions 1 gained, 0 lost" in pairs["same minus weak"]
    assert ", significant (Holm p = " in pairs["strong minus weak"]
    assert "of 200 questions 100 gained, 0 lost" in pairs["strong minus weak"]


def test_every_share_of_the_table_has_its_interval() -> None:
    rows = summary(full_evidence())
    shares = [cell for row in rows for cell in row[1:] if "%" in cell and row[0] != "mean probability on letters"]
    assert len(shares) >= 10 and all("(" in cell and "-" in cell for cell in shares)
    assert max(len(row[0]) for row in rows) <= 30 and max(len(cell) for row in rows for cell in row[1:]) <= 20


def test_two_models_stand_side_by_side_in_80_columns() -> None:
    """Label and two figures at their widest, with what rich puts between them."""
    test = some_questions(300)
    rows = collect({"base": answers(test, lambda q: (q.gold + 1) % 4)}, TEXT, test)
    widths = [max(map(len, column)) for column in zip(*summary(rows), strict=True)]
    assert widths[0] + 3 + 2 * (widths[1] + 3) <= 80


@pytest.mark.parametrize("seed", [1, 2])
def test_order_of_questions_changes_nothing(seed: int) -> None:
    test = some_questions(60)
    order = random.Random(seed).sample(range(60), 60)

    def told(rows: Sequence[int]) -> tuple[list[list[str]], list[str]]:
        asked = [test[k] for k in rows]
        weak = answers(asked, lambda q: q.gold if int(q.id[2:]) % 3 else 1, generate=True)
        evidence = collect({"weak": weak, "right": answers(asked, lambda q: q.gold)}, LETTER, asked)
        return summary(evidence), sentences(evidence)

    assert told(range(60)) == told(order)


# ---------------------------------------------------------------------------------------------- tuned against base


def test_mcnemar_by_hand() -> None:
    # b = 1, c = 7: 2 * (C(8,0) + C(8,1)) / 2^8 = 18/256.
    result = compare(predictions("A" * 10, "A" + "B" * 7 + "AB"), predictions("A" * 10, "B" + "A" * 7 + "AB"))
    assert (result.only_base_right, result.only_tuned_right) == (1, 7)
    assert result.p_value == pytest.approx(0.0703125, abs=1e-12)
    assert result.difference == pytest.approx(0.6)
    assert result.verdict == "no significant difference (p = 0.0703): 7 questions gained, 1 lost"


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 5), (2, 3), (0, 6), (30, 12), (7, 60)])
def test_mcnemar_equals_statsmodels(lost: int, gained: int) -> None:
    reference = pytest.importorskip("statsmodels.stats.contingency_tables")
    golds = "A" * (lost + gained + 4)
    base = predictions(golds, "A" * lost + "B" * gained + "AABB")
    tuned = predictions(golds, "B" * lost + "A" * gained + "AABB")
    expected = reference.mcnemar([[2, lost], [gained, 2]], exact=True).pvalue
    assert compare(base, tuned).p_value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"),
    [
        (0, 0, "no significant difference (p = 1): 0 questions gained, 0 lost"),
        (2, 1, "no significant difference (p = 1): 1 question gained, 2 lost"),
        (0, 8, "significantly better (p = 0.00781): 8 questions gained, 0 lost"),
        (8, 0, "significantly worse (p = 0.00781): 0 questions gained, 8 lost"),
        (0, 20, "significantly better (p < 0.001): 20 questions gained, 0 lost"),
    ],
)
def test_verdict(lost: int, gained: int, verdict: str) -> None:
    golds = "A" * (lost + gained + 2)
    base = predictions(golds, "A" * lost + "B" * gained + "AB")
    assert compare(base, predictions(golds, "B" * lost + "A" * gained + "AB")).verdict == verdict


def test_only_the_same_questions_are_compared() -> None:
    rows = predictions("ABC", "ABC")
    assert compare(rows, rows[::-1]).difference == 0
    with pytest.raises(RunError, match="1 of the 3 questions that base answered were not answered by tuned"):
        compare(rows, rows[:2])
    with pytest.raises(RunError, match="no questions"):
        compare([], [])
