"""Evidence: written and read as typed records, documented, and told in words that fit what is wrong."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from statistics_support import answered, predictions, question

from cyberlm.config.schema import OptionScore, Protocol
from cyberlm.evaluation.comparison import MeanDifference, PairComparison, compare_models
from cyberlm.evaluation.evidence import (
    Answers,
    Evidence,
    ModelEvidence,
    OptionScoring,
    RougeContext,
    Setting,
    collect,
    read_evidence,
    write_evidence,
)
from cyberlm.evaluation.evidence_records import (
    Calibration,
    CalibrationReport,
    CleanAccuracy,
    Debiasing,
    Finding,
    FloorReport,
    Leak,
    LeakAudit,
    LetterBias,
    NoiseSensitivity,
    PermutationScores,
)
from cyberlm.evaluation.evidence_report import differences, sentences, summary
from cyberlm.evaluation.intervals import AccuracyInterval, accuracy_interval
from cyberlm.evaluation.metrics.label_noise import Suspect
from cyberlm.evaluation.predictions import Prediction
from cyberlm.evaluation.records import Comparison, RougeScores
from cyberlm.evaluation.verdict import compare
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.questions import Question

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
    *(MeanDifference, LeakAudit, Leak, RougeContext),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_page_has_a_table_of_exactly_the_fields(record: type) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text("utf-8")
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
    return " ".join(s for s in sentences(evidence) if "calibrat" not in s and "best floor" not in s)


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


def first_right(test: Sequence[Question], count: int, generate: bool = False) -> Answers:
    return answers(test, lambda q: q.gold if int(q.id[2:]) < count else (q.gold + 1) % 4, generate)


def test_several_pairs_are_told_by_what_they_ask() -> None:
    test = some_questions(200)
    models = {name: first_right(test, count) for name, count in (("base", 100), ("same", 101), ("strong", 200))}
    bases = {"same": "base", "strong": "base"}
    evidence = collect(models, replace(LETTER, tuned_from=bases), test)
    tables = dict(differences(evidence))
    assert list(tables) == [
        "accuracy, likelihood: each tuned model against its base (Holm over 2)",
        "accuracy, likelihood: tuned models among each other (Holm over 1)",
    ]
    against, among = tables.values()
    assert against[""] == ["same minus base", "strong minus base"] and among[""] == ["strong minus same"]
    assert against["change"] == ["+0.5", "+50.0"] and against["gained, lost"] == ["1, 0", "100, 0"]
    assert against["95% interval"][0] == "-1.4 to +2.8"
    assert (against["p"], against["Holm p"]) == (["0.500", "< 0.001"], ["0.500", "< 0.001"])
    told = " ".join(sentences(evidence))
    assert "would be found 80 times in 100 from 4.0 to 14.0 points on." in told
    assert "Other measures of these pairs are in evidence.json." in told


def test_one_pair_is_told_by_every_measure() -> None:
    test = some_questions(200)
    models = {"base": first_right(test, 80, generate=True), "tuned": first_right(test, 90, generate=True)}
    evidence = collect(models, replace(LETTER, tuned_from={"tuned": "base"}), test)
    ((title, columns),) = differences(evidence)
    assert title == "tuned minus base"
    rows = {label: cells for label, *cells in zip(*columns.values(), strict=True)}
    assert list(rows) == [
        *("accuracy, likelihood", "accuracy, generation", "  an option is named", "  where both name one"),
        *("gold answer NLL, nats/token", "right option's NLL, nats", "ROUGE-1", "ROUGE-L"),
    ]
    assert rows["accuracy, generation"] == rows["accuracy, likelihood"] == ["+5.0", "+2.7 to +9.0", "< 0.001"]
    assert rows["  an option is named"] == ["+0.0", "-1.9 to +1.9", "1.000"]
    assert rows["ROUGE-1"][0] == "+0.0500" and rows["ROUGE-1"][2] == "0.004"
    widths = [max(map(len, [head, *cells])) for head, cells in columns.items()]
    assert sum(width + 3 for width in widths) <= 80
    assert differences(collect({"base": models["base"]}, LETTER, test)) == []


def test_differences_are_those_of_the_reported_means() -> None:
    evidence = full_evidence()
    found = {row.outcome: row for row in evidence.differences}
    assert set(found) == {"gold_nll", "option_nll", "rouge1", "rougeL"}  # letters have no pairs of words
    one, two = evidence.models.values()
    assert found["option_nll"].difference == pytest.approx(two.calibration.raw.nll - one.calibration.raw.nll)
    assert found["rouge1"].ci_lo is None and found["rouge1"].difference == 0  # both wrote the same
    ((_, columns),) = differences(evidence)
    shown = {label: cells for label, *cells in zip(*columns.values(), strict=True)}
    assert shown["ROUGE-1"] == ["+0.0000", "-", "-"]


def test_files_from_before_are_read(tmp_path: Path) -> None:
    """Without what was added later: outcomes, mid-p, families, differences of means."""
    write_evidence(full_evidence(), tmp_path)
    value = json.loads((tmp_path / "evidence.json").read_text())
    del value["differences"]
    value["pairs"] = value["pairs"][:1]
    for added in ("outcome", "p_mid", "family", "first_right", "second_right"):
        del value["pairs"][0][added]
    value["pairs"][0]["detectable"] = None
    (tmp_path / "evidence.json").write_text(json.dumps(value))
    (pair,) = read_evidence(tmp_path).pairs
    assert (pair.outcome, pair.p_mid, pair.p) == ("likelihood", None, pair.p_value)
    ((title, columns),) = differences(read_evidence(tmp_path))
    assert title == "two minus one" and columns[""] == ["accuracy, likelihood"]
    assert "would be found" not in " ".join(sentences(read_evidence(tmp_path)))


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


def compared(base: Sequence[Prediction], tuned: Sequence[Prediction], generated: bool = False) -> Comparison:
    found = compare(compare_models({"base": base, "tuned": tuned}, generated=generated))
    assert found is not None
    return found


def test_comparison_by_hand() -> None:
    # b = 1, c = 7: 2 * (C(8,0) + C(8,1)) / 2^8 = 18/256; mid-p is less by C(8,1) / 2^8.
    result = compared(predictions("A" * 10, "A" + "B" * 7 + "AB"), predictions("A" * 10, "B" + "A" * 7 + "AB"))
    assert (result.only_base_right, result.only_tuned_right, result.metric) == (1, 7, "likelihood")
    assert (result.p_value, result.p_mid) == pytest.approx((0.0703125, 0.0390625), abs=1e-12)
    assert result.difference == pytest.approx(0.6)
    assert result.sentences() == [
        "Tuned against base: +60.0 points of accuracy by likelihood (95% +4.9 to +85.9), significantly better "
        "(p = 0.0391, exact p = 0.0703): 7 questions gained, 1 lost."
    ]


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"),
    [
        (0, 0, "no significant difference (p = 1, exact p = 1): 0 questions gained, 0 lost"),
        (2, 1, "no significant difference (p = 0.625, exact p = 1): 1 question gained, 2 lost"),
        (0, 4, "no significant difference (p = 0.0625, exact p = 0.125): 4 questions gained, 0 lost"),
        (0, 8, "significantly better (p = 0.00391, exact p = 0.00781): 8 questions gained, 0 lost"),
        (8, 0, "significantly worse (p = 0.00391, exact p = 0.00781): 0 questions gained, 8 lost"),
        (0, 20, "significantly better (p < 0.001, exact p < 0.001): 20 questions gained, 0 lost"),
    ],
)
def test_verdict(lost: int, gained: int, verdict: str) -> None:
    golds = "A" * (lost + gained + 2)
    base = predictions(golds, "A" * lost + "B" * gained + "AB")
    assert compared(base, predictions(golds, "B" * lost + "A" * gained + "AB")).verdict == verdict


def completions(*parsed: int) -> list[Prediction]:
    """Right answers are A; -1 names no option. By likelihood the first half is right."""
    return [answered(question(k, 0), int(2 * k >= len(parsed)), parsed=choice) for k, choice in enumerate(parsed)]


def test_generation_speaks_first_with_format_apart_from_knowledge() -> None:
    """Of 100 questions 23 are gained and 7 lost: 14 and 1 as only one can be read, 9 and 6 where both can."""
    base = completions(*[-1] * 14, *[0] * 1, *[1] * 9, *[0] * 6, *[1] * 66, *[-1] * 4)
    tuned = completions(*[0] * 14, *[-1] * 1, *[0] * 9, *[1] * 6, *[1] * 66, *[-1] * 4)
    result = compared(base, tuned, generated=True)
    assert (result.metric, result.only_base_right, result.only_tuned_right) == ("generation", 7, 23)
    assert result.sentences() == [
        "Tuned against base: +16.0 points of accuracy by generation (95% +5.6 to +26.6), significantly better "
        "(p = 0.00333, exact p = 0.00522): 23 questions gained, 7 lost.",
        "Format +13.0 points: completions that name no option, cut off or not, go from 18.0% to 5.0% (p < 0.001); "
        "knowledge +3.0 points: where both name one (81 of 100 questions) 9 questions gained, 6 lost (p = 0.454).",
    ]
    assert compared(base, tuned).metric == "likelihood"


def test_completions_that_are_never_both_read_say_nothing_of_knowledge() -> None:
    moved = compared(completions(-1, -1, 0), completions(0, 1, -1), generated=True).moved
    assert moved.startswith("Format +0.0 points") and moved.endswith("; no question has both models name an option")


def test_models_of_other_names_are_not_compared_as_base_and_tuned() -> None:
    assert compare(compare_models({"a": completions(0), "b": completions(1)})) is None
    assert compare(()) is None
