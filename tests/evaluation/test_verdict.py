"""Comparisons in words and tables: what is said of a tuned model and its base, and of several pairs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from results_support import named, results
from statistics_support import answered, eval_set, predictions, question

from cyberlm.evaluation.comparison import compare_all, compare_models
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.predictions import Prediction, Predictions
from cyberlm.evaluation.records import MeanDifference, ModelSpec, Results
from cyberlm.evaluation.verdict import difference_tables, main_comparison, power, verdict, verdict_in_brief


def said(base: Sequence[Prediction], tuned: Sequence[Prediction], generated: bool = False) -> list[str]:
    return verdict(compare_models({"base": base, "tuned": tuned}, generated=generated))


@pytest.mark.parametrize(
    ("lost", "gained", "told"),
    [
        (0, 0, "no significant difference (p = 1): 0 questions gained, 0 lost."),
        (2, 1, "no significant difference (p = 0.625): 1 question gained, 2 lost."),
        (0, 8, "significantly better (p = 0.00391): 8 questions gained, 0 lost."),
        (8, 0, "significantly worse (p = 0.00391): 0 questions gained, 8 lost."),
        (0, 20, "significantly better (p < 0.001): 20 questions gained, 0 lost."),
    ],
)
def test_verdict(lost: int, gained: int, told: str) -> None:
    golds = "A" * (lost + gained + 2)
    base = predictions(golds, "A" * lost + "B" * gained + "AB")
    assert said(base, predictions(golds, "B" * lost + "A" * gained + "AB"))[0].endswith(f"), {told}")


def completions(*parsed: int) -> list[Prediction]:
    """Right answers are A; -1 names no option. By likelihood the first half is right."""
    return [answered(question(k, 0), int(2 * k >= len(parsed)), parsed=choice) for k, choice in enumerate(parsed)]


def test_generation_speaks_first_with_format_apart_from_knowledge() -> None:
    """Of 100 questions 23 are gained and 7 lost: 14 and 1 as only one can be read, 9 and 6 where both can."""
    base = completions(*[-1] * 14, *[0] * 1, *[1] * 9, *[0] * 6, *[1] * 66, *[-1] * 4)
    tuned = completions(*[0] * 14, *[-1] * 1, *[0] * 9, *[1] * 6, *[1] * 66, *[-1] * 4)
    assert said(base, tuned, generated=True) == [
        "Tuned against base: +16.0 points of accuracy by generation (95% +5.6 to +26.6), significantly better "
        "(p = 0.00333): 23 questions gained, 7 lost.",
        "Format +13.0 points: completions that name no option, cut off or not, go from 18.0% to 5.0% (p < 0.001); "
        "knowledge +3.0 points: where both name one (81 of 100 questions) 9 questions gained, 6 lost (p = 0.454).",
    ]
    assert "by likelihood" in said(base, tuned)[0]
    assert verdict_in_brief(compare_models({"base": base, "tuned": tuned}, generated=True)) == [
        "Difference: +16.0 points by generation (95% +5.6 to +26.6), p = 0.00333",
        "  Significantly better: 23 gained, 7 lost; format +13.0, knowledge +3.0",
    ]


def test_what_is_right_in_part_is_said_by_the_figure_of_the_task() -> None:
    pairs = compare_models({"base": completions(-1, -1, 1), "tuned": completions(1, 1, 1)}, generated=True)
    one = MeanDifference("base", "tuned", "gold_nll", 3, -0.4, -0.8, -0.1, 0.03, 0.03, "")
    f1 = replace(one, outcome="macro_f1", difference=0.25, ci_lo=0.1, ci_hi=0.4)
    means = (one, replace(one, outcome="rougeL"), f1)
    figure = "macro f1 +0.2500 (95% +0.1000 to +0.4000, p = 0.03)"
    assert verdict_in_brief(pairs, means)[1] == f"  0 gained, 0 lost; {figure}"
    assert verdict(pairs, means)[-1] == f"Answers that are right in part count in {figure}."
    assert verdict(pairs, means[:2]) == verdict(pairs)


def test_completions_that_are_never_both_read_say_nothing_of_knowledge() -> None:
    models = completions(-1, -1, 0), completions(0, 1, -1)
    pairs = compare_models(dict(zip(("base", "tuned"), models, strict=True)), generated=True)
    assert verdict_in_brief(pairs)[1].endswith("1 gained, 1 lost; they never both name an option")
    _, moved = said(*models, generated=True)
    assert moved.startswith("Format +0.0 points") and moved.endswith("; no question has both models name an option.")
    # models of other names are not compared as base and tuned
    assert main_comparison(compare_models({"a": completions(0), "b": completions(1)})) is None
    assert verdict(()) == verdict_in_brief(()) == []


# ------------------------------------------------------------------------------------------------------- tables


def compared(counts: dict[str, int], tuned_from: dict[str, str], **generated: Any) -> Results:
    """Results of models that answer the first questions of 200 right, as many as `counts` says."""
    asked = [question(k, k % 4) for k in range(200)]
    models = {}
    for name, count in counts.items():
        chosen = [q.gold if k < count else (q.gold + 1) % 4 for k, q in enumerate(asked)]
        rows = [answered(q, c, parsed=c if generated else None) for q, c in zip(asked, chosen, strict=True)]
        models[name] = Predictions(rows)
    kinds = {name: "adapter" if name in tuned_from else "base" for name in counts}
    specs = {name: ModelSpec(name, kind, tuned_from=tuned_from.get(name)) for name, kind in kinds.items()}
    comparisons, differences = compare_all(models, specs, eval_set(asked))
    labels = named(Metric("rouge1", 0.0, label="ROUGE-1"), Metric("gold_nll", 0.0, label="NLL"))
    return results(metrics=dict.fromkeys(counts, labels), comparisons=comparisons, differences=differences)


def test_several_pairs_are_told_by_what_they_ask() -> None:
    found = compared({"base": 100, "same": 101, "strong": 200}, {"same": "base", "strong": "base"})
    tables = dict(difference_tables(found))
    assert list(tables) == [
        "accuracy, likelihood: each tuned model against its base (Holm over 2)",
        "accuracy, likelihood: tuned models among each other (Holm over 1)",
    ]
    against, among = tables.values()
    assert against[""] == ["same minus base", "strong minus base"] and among[""] == ["strong minus same"]
    assert against["change"] == ["+0.5", "+50.0"] and against["gained, lost"] == ["1, 0", "100, 0"]
    assert against["95% interval"][0] == "-1.4 to +2.8"
    assert (against["p"], against["Holm p"]) == (["0.500", "< 0.001"], ["0.500", "< 0.001"])
    assert power(found.comparisons) == [
        "A difference of accuracy by likelihood would be found 80 times in 100 from 4.0 to 14.0 points on.",
        "Other measures of these pairs are in results.json.",
    ]


def test_one_pair_is_told_by_every_measure() -> None:
    found = compared({"base": 80, "tuned": 90}, {"tuned": "base"}, generated=True)
    ((title, columns),) = difference_tables(found)
    assert title == "tuned minus base"
    rows = {label: cells for label, *cells in zip(*columns.values(), strict=True)}
    assert list(rows) == [
        *("accuracy, likelihood", "accuracy, generation", "  an option is named", "  where both name one"),
        *("NLL", "right option's NLL", "ROUGE-1", "ROUGE-L"),  # letters have no pairs of words
    ]
    assert rows["accuracy, generation"] == rows["accuracy, likelihood"] == ["+5.0", "+2.7 to +9.0", "< 0.001"]
    assert rows["  an option is named"] == ["+0.0", "-1.9 to +1.9", "1.000"]
    assert rows["ROUGE-1"][0] == "+0.0500" and rows["ROUGE-1"][2] == "0.004"
    widths = [max(map(len, [head, *cells])) for head, cells in columns.items()]
    assert sum(width + 3 for width in widths) <= 80
    # equal models have no interval of scores, and one model alone no table
    ((_, columns),) = difference_tables(compared({"base": 80, "tuned": 80}, {"tuned": "base"}, generated=True))
    assert ["ROUGE-1", "+0.0000", "-", "-"] in map(list, zip(*columns.values(), strict=True))
    alone = compared({"base": 80}, {})
    assert (alone.comparisons, alone.differences) == ((), ()) and difference_tables(alone) == []
