"""Completions as models really write them, and the option that each names."""

import time

import pytest
from parser_cases import CASES, OPTIONS, Case

from cyberlm.tasks.answers.parsing import parse_letter, parse_text

A, B, C, D = range(4)

NAMED = [
    # a letter alone
    ("B", B),
    (" B", B),
    ("B\n", B),
    ("b", B),
    ("a", A),
    ("B)", B),
    ("(B)", B),
    ("[B]", B),
    ("{B}", B),
    ("B.", B),
    ("B:", B),
    ('"B"', B),
    ("'B'.", B),
    ("`B`", B),
    ("**B**", B),
    ("*B*", B),
    ("__B__", B),
    ("**B.**", B),
    ("**B", B),
    ("- B", B),
    ("> B", B),
    ("\uff22", B),  # full-width letter
    ("B<|eot_id|>", B),
    ("B</s>", B),
    # a letter in markup
    ("<xml>B</xml>", B),
    ("<answer>B</answer>", B),
    ("<answer>B", B),
    ("<answer>\nB\n</answer>", B),
    ("<Answer>B</Answer> because keys matter", B),
    ("<think>A is wrong. C? The answer is C.</think>\n\nB", B),
    ("\\boxed{B}", B),
    ("$\\boxed{B}$", B),
    ("The answer is $\\boxed{\\text{B}}$.", B),
    ('{"answer": "B"}', B),
    # announced
    ("Answer: B", B),
    ("answer: b", B),
    ("ANSWER: B", B),
    ("Answer B", B),
    ("Ans: B", B),
    ("**Answer:** B", B),
    ("**Answer: B**", B),
    ("### Answer: B", B),
    ("### Answer\nB", B),
    ("Answer:\nB", B),
    ("Answer: (B)", B),
    ("Answer: **B) Encrypt data at rest**", B),
    ("Correct answer: B", B),
    ("Correct: B", B),
    ("The answer is B", B),
    ("The answer is B.", B),
    ("The answer is: B", B),
    ("The answer is **B**.", B),
    ("The correct answer is (B)", B),
    ("The correct answer is:\n\n**B) Encrypt data at rest**", B),
    ("The answer is B) Encrypt data at rest", B),
    ("The correct answer is option B.", B),
    ("The best answer is the letter B.", B),
    ("The most likely answer is B.", B),
    ("The answer is most likely B.", B),
    ("The correct answer to the question is B.", B),
    ("The correct option is B", B),
    ("My final answer: B", B),
    ("So, the answer is B.", B),
    ("Sure! The answer is B.", B),
    ("Phishing is social engineering, so the correct answer is (B).", B),
    ("A firewall does not help at rest. Therefore, the answer is B.", B),
    ("Option A is incorrect. The answer is B.", B),
    ("Option B", B),
    ("Option B.", B),
    ("Option (B) is correct.", B),
    ("Choice: B", B),
    ("I would choose B.", B),
    ("I'd go with option B", B),
    ("I think it's B.", B),
    ("It's B.", B),
    # a letter and its own text
    ("B) Encrypt data at rest", B),
    ("B)Encrypt data at rest", B),
    ("B. Encrypt data at rest.", B),
    ("B.encrypt data at rest", B),
    ("B: encrypt data at rest", B),
    ("(B) Encrypt  data at rest", B),
    ("B - Encrypt data at rest", B),
    ("B – Encrypt data at rest", B),
    ("B Encrypt data at rest", B),
    ("B (Encrypt data at rest)", B),
    ("B\nEncrypt data at rest", B),
    ("**B)** Encrypt data at rest", B),
    ('B) "Encrypt data at rest"', B),
    ("b) Encrypt data at rest", B),
    ("a. Hash the password", A),
    ("B) Encrypt data at", B),  # cut off by the token limit
    ("C) Firewall", C),
    ("D) Firewall rules and access", D),
    ("D. Firewall rules and access control lists", D),
    # a letter and an explanation
    ("B: a lost disk cannot be read then", B),
    ("B. This protects the disk if it is stolen.", B),
    ("B) Encrypt data at rest, because a stolen disk", B),
    ("B because the disk may be stolen", B),
    ("B, because the disk may be stolen", B),
    ("B, since A protects only passwords", B),
    ("B, not A", B),
    ("The answer is B, not A.", B),
    ("B is correct.", B),
    ("B is the correct answer because disks get lost.", B),
    ("B is the answer", B),
    ("B\n\nExplanation: encryption at rest protects stolen disks.", B),
    ("B\n\nA good practice is to rotate keys.", B),
    ("B) Encrypt data at rest\n\nExplanation:\nA) is wrong, as hashing is one-way", B),
    ("Answer: B\nExplanation: The answer is B because", B),
    ("B\n\nQuestion: What is a botnet?\nA) A worm\nB) A net\nAnswer: A", B),  # goes on with a question of its own
    ("B. E.g. full-disk encryption", B),
    ("B. C&C traffic is another matter", B),
    # an option's text alone
    ("Encrypt data at rest", B),
    ("encrypt data  at rest.", B),
    ('"Encrypt data at rest"', B),
    ("**Encrypt data at rest**", B),
    ("Encrypt data at rest\n\nExplanation: disks get lost.", B),
    ("The answer is Encrypt data at rest.", B),
    ("Answer: Encrypt data at rest", B),
    ("<answer>Encrypt data at rest</answer>", B),
    ("\\boxed{Encrypt data at rest}", B),
    ("firewall", C),
]

REFUSED = [
    # nothing
    "",
    "   ",
    "\n\n",
    "...",
    "?",
    "**",
    # more than one
    "A or B",
    "A, B",
    "A and B",
    "A & B",
    "A/B",
    "A B",
    "AB",
    "A; B",
    "A) or B)",
    "A, B, C and D",
    "Both A and B",
    "Either A or B",
    "(A), (B)",
    "Options A and B",
    "Answer: A or B",
    "Answer: A, B",
    "The answer is A or maybe B.",
    "The answer is A and B.",
    "A. or possibly B",
    "The answer is B. The answer is C.",
    "B\nThe answer is C.",
    "A: B",
    "A: Answer B",
    "A\nB\nC\nD",
    "A) Hash the password\nB) Encrypt data at rest\nC) Firewall",
    "A) Hash the password B) Encrypt data at rest",
    "Hash the password\nEncrypt data at rest",
    "B) Encrypt data at rest and C",
    # letter and text disagree
    "A. Encrypt data at rest",
    "A) Encrypt data",
    "A\nEncrypt data at rest",
    "The answer is A) Encrypt data at rest.",
    "C) Firewall rules and access control lists",
    "D) Firewall",
    "A (Encrypt data at rest) because",
    # no letter that answers
    "not A",
    "Not (A)",
    "A is wrong",
    "A is incorrect because hashing is one-way",
    "B) is not correct",
    "The answer is not B.",
    "I don't think the answer is B.",
    "If the answer is B, the disk is safe.",
    "The wrong answer is A.",
    "A good answer would be to rotate keys",
    "A firewall",
    "a firewall",
    "The answer is a firewall appliance",
    "A strong password is needed",
    "C2 server",
    "D'oh",
    "e-mail",
    "Because",
    # beyond the options
    "E",
    "F) Something else",
    "The answer is E.",
    "Z",
    "1",
    "2)",
    # refusals and talk
    "I'm sorry, but I can't help with that.",
    "I cannot answer this question.",
    "As an AI language model, I do not have opinions.",
    "None of the above",
    "All of the above",
    "Encryption",
    "Encrypt data at rest or Firewall",
    "Question: What protects a disk?",
    "<think>The answer is B.",
]


@pytest.mark.parametrize(("completion", "index"), NAMED)
def test_letter_is_named(completion: str, index: int) -> None:
    assert parse_letter(completion, OPTIONS) == index


@pytest.mark.parametrize("completion", REFUSED)
def test_what_names_no_option_or_several_is_refused(completion: str) -> None:
    assert parse_letter(completion, OPTIONS) is None


@pytest.mark.parametrize(
    ("completion", "options", "index"),
    [
        ("A firewall", ("Hash", "Key", "A firewall"), 2),  # an article, not a letter
        ("Answer: A firewall", ("Hash", "Key", "A firewall"), 2),
        ("A firewall", ("Firewall", "Key"), 0),  # letter and text agree
        ("A firewall", ("Firewall", "A firewall"), None),
        ("D) Both A and B", ("Hash", "Key", "Token", "Both A and B"), 3),
        ("Both A and B", ("Hash", "Key", "Token", "Both A and B"), 3),
        ("All of the above", ("Hash", "Key", "All of the above"), 2),
        ("B) False", ("True", "False"), 1),
        ("B. False", ("False", "True"), None),
        ("True", ("True", "False"), 0),
        ("A) C", ("C", "Python"), 0),  # the language C
        ("<answer>B</answer>", ("B", "C"), 1),
        ("B", ("B", "C"), 1),  # asked for a letter: the letter counts
        ("C++", ("Rust", "Go", "C++"), 2),
        ("C++", ("Rust", "Go", "Java"), None),
        ("C: C++", ("Rust", "Go", "C++"), 2),
        ("C:\\Windows", ("x", "y", "z"), None),
        ("C", ("x", "y"), None),
        ("H", tuple("stuvwxyz"), 7),
        ("B. E.g. a worm", tuple("stuvwxyz"), 1),
        ("Key", ("Key", "key."), None),  # two options read the same
        ("The answer is ISO.", ("IETF", "ISO"), 1),
        ("The answer is ::1", ("127.0.0.1", "::1"), 1),
        ("-a", ("-S", "-B", "-a"), 2),
        ("To find name-resolution issues", ("To log in", "To find name-resolution issues"), 1),
        ("B) <iframe>", ("<script>", "<iframe>"), 1),
        ("<iframe>", ("<script>", "<iframe>"), 1),
        ("B) SELECT * FROM users", ("DROP", "SELECT * FROM users"), 1),
        ("\ufb01rewall", ("firewall", "key"), 0),  # ligature
        ("B) “It’s off”", ("On", "It's off"), 1),
    ],
)
def test_letter_beside_awkward_options(completion: str, options: tuple[str, ...], index: int | None) -> None:
    assert parse_letter(completion, options) == index


@pytest.mark.parametrize(
    ("completion", "index"),
    [
        ("Encrypt data at rest", B),
        (" encrypt  DATA at rest.", B),
        ('"Encrypt data at rest"', B),
        ('"Encrypt data at rest."', B),
        ("“Encrypt data at rest”", B),
        ("**Encrypt data at rest**", B),
        ("Encrypt data at rest\nThis protects the disk.", B),
        ("The answer is Encrypt data at rest.", B),
        ("Answer: Firewall", C),
        ("Firewall", C),
        ("Firewall rules and access control lists", D),
        ("B) Encrypt data at rest", B),
        ("(B) Encrypt data at rest.", B),
        ("B. encrypt data at rest", B),
        ("Answer: B) Encrypt data at rest", B),
        ("<answer>Encrypt data at rest</answer>", B),
        ("Encrypt data at rest\n\nQuestion: What is a botnet?", B),
        ("", None),
        ("B", None),
        ("B)", None),
        ("A) Encrypt data at rest", None),
        ("Encrypt data", None),
        ("Encrypt data at rest and in transit", None),
        ("Firewall rules", None),
        ("Not a firewall", None),
        ("A firewall", None),
        ("Hash the password, Firewall", None),
        ("Hash the password\nFirewall", None),
        ("I'm sorry, but I can't help with that.", None),
    ],
)
def test_text(completion: str, index: int | None) -> None:
    assert parse_text(completion, OPTIONS) == index


def test_text_of_two_equal_options_names_neither() -> None:
    assert parse_text("key", ("Key", "key.", "Lock")) is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.completion}")
def test_completions_by_kind(case: Case) -> None:
    assert case.found() == case.expected


def test_each_kind_has_completions_that_name_an_option_and_some_that_name_none() -> None:
    assert len(CASES) >= 150
    kinds = {case.kind for case in CASES}
    assert {case.kind for case in CASES if case.expected == "-"} == kinds
    assert {case.kind for case in CASES if case.expected != "-"} == kinds


@pytest.mark.parametrize(
    "loop",
    [
        "A, ",
        "A and B or ",
        "the most likely ",
        "The answer is ",
        "A) Hash the password\n",
        "so, ",
        '{"',
        "\\boxed{",
        "* a",
    ],
)
def test_a_completion_that_repeats_itself_takes_no_longer(loop: str) -> None:
    started = time.process_time()
    parse_letter(loop * 500, OPTIONS)
    assert time.process_time() - started < 2  # 0.2 s at most on an idle core
