"""Reordered options: which rows may be, how, and what it shows."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statistics_support import answered, calmly, question

from cyberlm.evaluation.metrics.rotations import permutation_scores, prior_sample, rotate, rotations, safe_to_permute
from cyberlm.evaluation.predictions import Prediction
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.questions import Question

DATA_DIR = os.environ.get("CYBERLM_DATA_DIR")

UNSAFE = [
    "All of the above",
    "ALL OF THE ABOVE.",
    "None of the above ",
    "None of the above options apply",
    "All the above options could be viable",
    "All provided answers",
    "All answers are correct",
    "Not any of the listed options",
    "All of the mentioned strategies can assist",
    "All of them",
    "Neither of these",
    "Both of the above",
    "Both A and B",
    "Both A and B are essential steps",
    "Neither A nor B",
    "A and C",
    "A,B and C",
    "A & D",
    "A) and B)",
    "Options A, B, and D are also correct",
    "Answer (C)",
    "If evaluated correctly, A, B, and C could all be accurate",
    "Only B is correct",
    "both a and b",
    "Neither (a) nor (b)",
    *("Both", "both.", "Neither", "All", "None", "None.", "Either", "Any"),
    *(
        "All are correct",
        "All are correct.",
        "Both are true",
        "Neither is correct",
        "None is right",
        "They are all correct",
    ),
    *("All three", "All of the three", "All apply", "Both of them", "Both of these are wrong"),
    *("A only", "B alone", "(C) only", "A and B only"),
    *("All but C", "All except B", "Everything except D", "Any but (A)", "None but B", "All of them except for A"),
    *(
        "The first two",
        "The last two",
        "Only the first",
        "The first and third",
        "The other three are correct",
        "The latter",
    ),
    *("Same as A", "Same as (B)", "The same as option C", "The opposite of B", "Same as above", "Equivalent to D"),
    *("a and b", "a, b", "A combination of A and B", "Everything", "No correct answer"),
]
SAFE = [
    "A baseline of user errors above which violations will be recorded",
    "Anything above 501",
    "Opening any port above 1023",
    "Connection to a Storm-Worm C&C network",
    "C++",
    "C and C++",
    "A relation represents a strict mapping from A to B.",
    "The ARP cache of Machine A would need to be poisoned, changing the entry for Machine C",
    "It offers 23 B channels and 1 D channel",
    "A SYN scan",
    "A",
    "Class B fires",
    "A and AAAA records",
    "Both civil and criminal law",
    "It uses a single key to both encrypt and decrypt",
    "The odds of a flood at this level are 1 in 100 in any given year.",
    "To encrypt all data passing through the network",
    *("Hepatitis B and C", "Vitamins A and D", "Class A and B fires", "Machines A and B", "Types A, B and C"),
    *(
        "All traffic",
        "Both parties sign",
        "None by default",
        "Nothing is logged",
        "All ports are closed by the firewall",
    ),
    *("The first three octets", "The last two bits of the address", "The second factor", "The first responder"),
    *(
        "A only-child key",
        "Only administrators",
        "B-only traffic",
        "All but administrators",
        "Everything except passwords",
    ),
    *("The same key as before", "Same-origin policy", "Same as Kerberos", "See appendix", "Nothing but net"),
    "Neither RSA nor Diffie-Hellman",
    "C:\\Windows\\System32\\Config",
]


@pytest.mark.parametrize("option", UNSAFE)
def test_options_that_speak_of_others(option: str) -> None:
    assert not safe_to_permute(("north", option, "south", "west"))


@pytest.mark.parametrize("option", SAFE)
def test_options_that_stand_alone(option: str) -> None:
    assert safe_to_permute(("north", option, "south", "west"))


def test_letters_that_are_no_option_are_text() -> None:
    assert safe_to_permute(("C and D", "Hepatitis"))
    assert not safe_to_permute(("C and D", "Hepatitis", "rabies", "x"))


@pytest.mark.skipif(DATA_DIR is None, reason="CYBERLM_DATA_DIR names no folder with the CyberMetric files")
@pytest.mark.parametrize(("name", "unsafe"), [("80", 4), ("500", 16), ("2000", 83)])
def test_share_of_cybermetric_that_must_not_be_reordered(name: str, unsafe: int) -> None:
    rows = json.loads((Path(DATA_DIR or "") / f"CyberMetric-{name}-v1.json").read_text())["questions"]
    assert sum(not safe_to_permute(tuple(row["answers"].values())) for row in rows) == unsafe


def test_rotation_by_hand() -> None:
    asked = question(0, gold=1)
    turned = rotate(asked, 1)
    assert turned.options == ("east", "south", "west", "north")
    assert (turned.gold, turned.answer, turned.id) == (0, "east", asked.id)
    assert turned.hash != asked.hash
    assert [q.gold for q in rotations(asked)] == [1, 0, 3, 2]
    assert rotations(asked)[0] == asked


@calmly
@given(st.integers(2, 8), st.integers(0, 7), st.integers(-9, 9))
def test_rotating_keeps_the_answer_and_comes_round(count: int, gold: int, shift: int) -> None:
    asked = question(0, gold % count, [f"option {k}" for k in range(count)])
    turned = rotate(asked, shift)
    assert turned.answer == asked.answer
    assert sorted(turned.options) == sorted(asked.options)
    assert rotate(turned, -shift) == asked
    for _ in range(count):
        asked, previous = rotate(asked, 1), asked
        assert asked.options[-1] == previous.options[0]
    assert rotate(turned, count) == turned
    # Over all rotations every option stands once behind every letter.
    assert {q.options[0] for q in rotations(turned)} == set(turned.options)


def under_rotation(asked: Question, chosen: Sequence[int], parsed: Sequence[int] | None = None) -> list[Prediction]:
    return [
        answered(turned, choice, parsed=None if parsed is None else parsed[shift])
        for shift, (turned, choice) in enumerate(zip(rotations(asked), chosen, strict=True))
    ]


def test_scores_by_hand() -> None:
    asked = question(0, gold=1)  # right are 1, 0, 3, 2
    groups = [
        under_rotation(asked, (1, 0, 3, 2)),  # always right
        under_rotation(asked, (0, 3, 2, 1)),  # always "north": consistent, and wrong
        under_rotation(asked, (0, 0, 0, 0)),  # always the letter A: right once
        under_rotation(asked, (1, 0, 3, 0)),  # right three times
    ]
    scores = permutation_scores(groups, skipped=3)
    assert (scores.n, scores.skipped) == (4, 3)
    assert scores.acc_mean == pytest.approx((1 + 0 + 0.25 + 0.75) / 4)
    assert scores.circular_acc == 0.25
    assert scores.consistency == 0.5
    assert permutation_scores(groups[::-1], skipped=3) == scores


def test_completions_that_name_nothing_are_not_consistent() -> None:
    asked = question(0, gold=1)
    silent = under_rotation(asked, (1, 0, 3, 2), parsed=(-1, -1, -1, -1))
    speaking = under_rotation(asked, (0, 0, 0, 0), parsed=(1, 0, 3, 2))
    scores = permutation_scores([silent, speaking], generated=True)
    assert (scores.acc_mean, scores.circular_acc, scores.consistency) == (0.5, 0.5, 0.5)


def test_questions_may_have_different_numbers_of_options() -> None:
    groups = [under_rotation(question(0, 0, ("yes", "no")), (0, 1)), under_rotation(question(1, 2), (2, 1, 0, 0))]
    assert permutation_scores(groups).acc_mean == pytest.approx((1 + 0.75) / 2)


def test_predictions_that_are_no_rotations_are_refused() -> None:
    group = under_rotation(question(0, gold=1), (1, 0, 3, 2))
    for bad in (group[:3], group[::-1], [*group[:3], replace(group[3], id="q:other")], []):
        with pytest.raises(RunError, match="one for each rotation"):
            permutation_scores([bad])
    with pytest.raises(RunError, match="no questions whose options"):
        permutation_scores([])


def test_sample_for_the_prior() -> None:
    asked = [question(i, i % 4) for i in range(100)]
    asked += [question(i, 0, ("one", "two", "three", "All of the above")) for i in range(100, 150)]
    asked += [question(i, 0, ("yes", "no")) for i in range(150, 160)]
    sample = prior_sample(asked)
    assert len(sample) == 8  # 5% of 160
    assert all(len(q.options) == 4 and safe_to_permute(q.options) for q in sample)
    assert prior_sample(asked[::-1]) == sample
    assert prior_sample(asked, seed=1) != sample
    assert len(prior_sample(asked[:3])) == 1
    assert len(prior_sample(asked, share=1.0)) == 100
    assert prior_sample(asked[100:150]) == ()
    assert prior_sample([]) == ()
