"""Completions as models really write them, and the option that each names.

answers.json holds them: by whether a letter or an option's text is asked for, and by kind, each as [completion, letter
of the option that it names or -, options]. Without options, they are `options.options`: C begins D there, so that a
prefix is not taken for the whole. `python tests/tasks/test_answers.py` prints what is found against what is expected.
"""

import json
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from cyberlm.tasks.answers.parsing import parse_letter, parse_text

TABLE = json.loads(Path(__file__).with_name("answers.json").read_text("utf-8"))


class Case(NamedTuple):
    kind: str
    completion: str
    expected: str
    options: list[str]
    asked: str

    def found(self) -> str:
        index = (parse_text if self.asked == "text" else parse_letter)(self.completion, self.options)
        return "-" if index is None else "ABCDEFGHIJ"[index]


def cases(asked: str) -> list[Case]:
    table, named = TABLE[asked], TABLE["options"]
    rows = [(kind, *row, *["options"][len(row) - 2 :]) for kind, rows in table.items() for row in rows]
    return [Case(*row[:3], named[row[3]] if isinstance(row[3], str) else row[3], asked) for row in rows]


CASES = cases("letter") + cases("text")


@pytest.mark.parametrize("asked", ["letter", "text"])
def test_completions_by_kind(asked: str) -> None:
    assert [(case, case.found()) for case in cases(asked) if case.found() != case.expected] == []


def test_there_are_many_and_each_kind_of_them_has_some_that_name_none() -> None:
    assert len(CASES) == 951
    by_kind = Counter((case.asked, case.kind, case.expected == "-") for case in CASES)
    one_sided = {kind for asked, kind, _ in by_kind if len({(asked, kind, no) in by_kind for no in (True, False)}) == 2}
    assert all(kind.startswith(("named: ", "refused: ")) for kind in one_sided)


LOOPS = (
    *("A, ", "A and B or ", "the most likely ", "The answer is ", "A) Hash the password\n"),
    *("so, ", '{"', "\\boxed{", "* a"),
)


def test_a_completion_that_repeats_itself_takes_no_longer() -> None:
    started = time.process_time()
    for loop in LOOPS:
        parse_letter(loop * 500, TABLE["options"]["options"])
    assert time.process_time() - started < 5  # 0.2 s at most for each on an idle core


def main() -> None:
    """Prints two tables: expected against found by letter, and right of all by kind."""
    pairs = Counter((case.expected, case.found()) for case in CASES)
    names = sorted({name for pair in pairs for name in pair}, key=lambda name: (name == "-", name))
    print(f"{len(CASES)} completions; rows are what was expected, columns what was found, - is none.\n")
    for row in [["", *names], *([name, *(pairs[name, found] or "." for found in names)] for name in names)]:
        print("".join(f"{cell:>6}" for cell in row))
    for kind in dict.fromkeys(case.kind for case in CASES):
        mine = [case.found() == case.expected for case in CASES if case.kind == kind]
        print(f"{kind:<60}{sum(mine)} of {len(mine)}")


if __name__ == "__main__":
    main()
