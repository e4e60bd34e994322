"""Reads the option that a generated completion names, or None. Strict: a text that can be read in two ways names none.

Reading takes three steps, so that the grammar meets few forms:

1. `spelling`: characters that look alike become one, thoughts and later turns are cut off, markup around an answer
   (code fences, LaTeX, tags, JSON, ticks) becomes plain text.
2. `references`: whatever refers to an option becomes one private character: its letter (`B`, `option B`, `B)`), its
   text, or its letter with its own text. The article in "a firewall" and the pronoun "I" refer to nothing.
3. `denials` and `claims` find events, in the order of the text: an option is claimed ("the answer is R", "R is
   correct", R at the beginning) or denied ("R is incorrect", "not R"), or what was claimed is taken back ("wait").

A claim counts by its strength: one that is called final before an announced one, that before one on the last line.
All claims of the highest strength must name one option. Guessing would turn a model that answers badly into one that
answers at random.
"""

from collections.abc import Sequence

from cyberlm.tasks.answers.claims import claims, retractions, verdicts
from cyberlm.tasks.answers.denials import with_lists, without_denied
from cyberlm.tasks.answers.events import FINAL, WEAK, Claim, Denial, Retraction
from cyberlm.tasks.answers.references import with_references


def parse_letter(completion: str, options: Sequence[str]) -> int | None:
    """Reads an answer to a question that asks for a letter.

    Returns:
        Index of the option that is named by its letter, or by its whole text; None where none is, or more than one.
    """
    claim = _answer(with_references(completion, options, asked_for_text=False))
    return claim.option if claim else None


def parse_text(completion: str, options: Sequence[str]) -> int | None:
    """Reads an answer to a question that asks for an option's text.

    Equality is of normalised text: case, white space, quotes around it and punctuation at its end do not count.

    Returns:
        Index of the option that is named by its whole text, be it with its letter. None for a letter alone, for part of
        a text, and where two options read the same.
    """
    claim = _answer(with_references(completion, options, asked_for_text=True))
    return claim.option if claim and claim.by_text else None


def _answer(text: str) -> Claim | None:
    """Claim that is left at the end of a text with references; None where there is none, or several disagree."""
    text, denials = without_denied(text)
    text, judged = verdicts(with_lists(text))
    events = sorted([*denials, *judged, *claims(text), *retractions(text)], key=lambda event: event[0])
    standing: list[Claim] = []
    taken_back, open_end = False, False
    for _, event in events:
        if isinstance(event, Retraction):
            taken_back, open_end = True, open_end or (event.open and bool(standing))
        elif isinstance(event, Denial):
            standing = [claim for claim in standing if claim.option != event.option]
        else:
            if event.strength > WEAK and taken_back:
                standing, taken_back, open_end = [], False, False
            if event.strength == FINAL:
                standing = [claim for claim in standing if claim.strength == FINAL]
            standing.append(event)
    best = max((claim.strength for claim in standing), default=WEAK)
    standing = [claim for claim in standing if claim.strength == best or best == FINAL]
    if open_end or len({claim.option for claim in standing}) != 1:
        return None
    return Claim(standing[0].option, best, any(claim.by_text for claim in standing))
