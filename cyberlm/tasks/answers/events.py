"""Events of a completion: an option is claimed, an option is denied, all claims are taken back."""

from typing import NamedTuple

WEAK, ANNOUNCED, FINAL = range(3)


class Claim(NamedTuple):
    """An option named as the answer.

    Attributes:
        option: None where several are named at once.
        strength: `WEAK`, `ANNOUNCED` or `FINAL`.
        by_text: Whether it is named by its text.
    """

    option: int | None
    strength: int
    by_text: bool


class Denial(NamedTuple):
    """An option said to be wrong."""

    option: int


class Retraction(NamedTuple):
    """All earlier claims are taken back.

    Attributes:
        open: Whether it stays taken back where no other claim follows.
    """

    open: bool


Events = list[tuple[int, Claim | Denial | Retraction]]
"""With their places in the text."""
