"""References to options, each one private character: what a completion names by letter, by text, or by both."""

import re
import string
from collections.abc import Sequence

from cyberlm.tasks.answers.spelling import folded, readable, without_markup

_FIRST, _KIND_SIZE = 0xE000, 0x40
BARE, NAMED, MARKED, OWN, TEXT, PART = range(6)
"""Kinds of references: B; option B; (B) or B); B) with its text; a text; the beginning of a text at the very end."""
MANY, DENIED = "\ue1fe", "\ue1ff"


def reference(kind: int, option: int) -> str:
    return chr(_FIRST + kind * _KIND_SIZE + option)


def kind_of(reference: str) -> int:
    return (ord(reference) - _FIRST) // _KIND_SIZE


def option_of(reference: str) -> int:
    return (ord(reference) - _FIRST) % _KIND_SIZE


def any_of(*kinds: int) -> str:
    """A regular expression for references of these kinds."""
    ranges = (f"{reference(kind, 0)}-{reference(kind, _KIND_SIZE - 1)}" for kind in kinds)
    return f"[{''.join(ranges)}]"


LETTER = any_of(BARE, NAMED, MARKED)
REF = f"{any_of(BARE, NAMED, MARKED, OWN, TEXT)[:-1]}{MANY}]"
_W = r"[^\W_]"
_MENTION = re.compile(
    rf"""(?ix)(?<!{_W})(?<![&/+@%\\-])(?<!{_W}\.)(?<!{_W}['’-])
    (?P<open>[(\[{{<"'*_]*)
    (?P<noun>(?:the\s+)?(?:answer\s+choice|option|choice|letter|alternative|statement)s?\s*\#?\s*)?
    (?P<inner>[(\[{{<"'*_]*)
    (?P<letter>[a-z])(?!{_W}|[&+#@%\\/]|['’-]{_W}|\.{_W}|:[\\/]|\.\s?(?!e\.\s?g|i\.\s?e)[a-z]\.)
    (?P<close>[)\]}}>"'*_]*)"""
)
# What follows a letter that could be a word ("a", "I"), or is small.
_NOT_A_WORD = re.compile(
    r"""(?ix)\s*(?:$|[\n.,;:!?|)\]✓✗=]|[–—-]\s)
    |\s+(?:is|was|are|isn't|wasn't|would|should|must|because|since|and|or|nor|but|not|rather|instead|over|vs|versus|as
        |which|with|due|seems|appears|looks|does|doesn't|do|cannot|can't|only)\b"""
)
JOIN = r"""["'*_]*\s*(?:[.:,;=|)(\[–—-]\s*)*["'(\[*_]*"""
_LETTER_THEN_TEXT = re.compile(rf"""({LETTER})({JOIN})({any_of(TEXT, PART)})((?:\s?["')\]*]+)?)""")
_TEXT_THEN_LETTER = re.compile(rf"({any_of(TEXT)})[\s,(\[–—:-]+({LETTER})")
_LETTER_TWICE = re.compile(rf"({LETTER}){JOIN}({any_of(BARE)})")


def with_references(completion: str, options: Sequence[str], *, asked_for_text: bool) -> str:
    """The completion with a private character in place of each reference to an option.

    Args:
        asked_for_text: Whether a letter that is also an option's text ("C", the language) is that text.
    """
    texts = [folded(option) for option in options]
    text = without_markup(_with_texts(readable(completion), texts))
    text = _MENTION.sub(lambda match: _letter(match, len(options)), text)
    lone = {ord(option) - ord("a"): k for k, option in enumerate(texts) if _is_lone_letter(option, len(texts))}
    text = _LETTER_TWICE.sub(
        lambda m: reference(OWN, option_of(m[1])) if lone.get(option_of(m[2])) == option_of(m[1]) else m[0], text
    )
    if asked_for_text:
        text = re.sub(
            any_of(BARE), lambda m: reference(TEXT, lone[k]) if (k := option_of(m[0])) in lone else m[0], text
        )
    text = _LETTER_THEN_TEXT.sub(_with_own_text, text)
    text = _TEXT_THEN_LETTER.sub(
        lambda m: reference(OWN, option_of(m[1])) if option_of(m[1]) == option_of(m[2]) else m[0], text
    )
    return re.sub(rf"({REF})(?:[ ,;/]+\1)+", r"\1", text)  # "B, B, B"


def _is_lone_letter(text: str, options: int) -> bool:
    """Test for an option's text that could be taken for an option's letter."""
    return len(text) == 1 and 0 <= ord(text) - ord("a") < options


def _with_texts(text: str, texts: Sequence[str]) -> str:
    """References in place of the options' texts, the longest first; in place of one that is cut off at the end, too."""
    owners: dict[str, set[int]] = {}
    for k, option in enumerate(texts):
        if option and not _is_lone_letter(option, len(texts)):
            owners.setdefault(option, set()).add(k)
    for k, option in enumerate(texts):
        spoken = f"{string.ascii_lowercase[k]} {option}"  # "A firewall" where option A is "firewall"
        if spoken in owners:
            owners[spoken].add(k)
    text = _with_part(text, texts)
    if not owners:
        return text

    def name(match: re.Match[str]) -> str:
        held = owners[" ".join(match[0].split()).casefold()]
        return reference(TEXT, min(held)) if len(held) == 1 else MANY

    longest_first = sorted(owners, key=len, reverse=True)
    return re.sub("|".join(map(_bounded, longest_first)), name, text, flags=re.IGNORECASE)


def _bounded(option: str) -> str:
    """A regular expression for an option's text; not for a part of a word, nor for an adjective of "answer"."""
    words = r"\s+".join(map(re.escape, option.split()))
    before = rf"(?<!{_W})(?<!{_W}-)" if option[0].isalnum() else ""
    after = rf"(?!{_W}|[+#]|[-.']{_W})" if option[-1].isalnum() else ""
    return rf"{before}{words}{after}(?!\s+(?:answer|option|choice|response)\b)"


def _with_part(text: str, texts: Sequence[str]) -> str:
    """A reference in place of the last words, where these begin one option's text and no other."""
    longest = max(map(len, texts))
    for word in re.finditer(rf"(?<!{_W}){_W}", text):
        if word.start() < max(len(text) - longest - 1, text.rfind("\n") + 1):
            continue
        part = " ".join(text[word.start() :].split()).casefold().rstrip(" .,;:!?\"'`")
        begun = [k for k, option in enumerate(texts) if option.startswith(part)]
        if len(part) >= 4 and begun:
            unclear = part in texts or len(begun) > 1
            return text if unclear else text[: word.start()] + reference(PART, begun[0])
    return text


def _letter(match: re.Match[str], options: int) -> str:
    """A reference in place of a letter, unless it is a word or not an option's."""
    letter, after = match["letter"], match.string[match.end() :]
    option = ord(letter.upper()) - ord("A")
    bracketed = match["close"][:1] in (")", "]", "}", ">") or bool(match["open"] + match["inner"] and match["close"])
    own = after[:2] == " " + reference(TEXT, option)
    a_word = (letter in "AI" or letter.islower()) and not bracketed and not own and not _NOT_A_WORD.match(after)
    if letter == "A" and re.match(r"\s*\([^()\n]*\)\s*(?:$|[.,;:\n])", after):
        a_word = False
    pronoun = letter in "Ii" and not (bracketed or match["noun"]) and not re.match(r"\s*(?:$|[.:)\n])", after)
    if option >= options or a_word or pronoun:
        return match[0]
    return reference(MARKED if bracketed else NAMED if match["noun"] else BARE, option)


def _with_own_text(match: re.Match[str]) -> str:
    """`B) <text>` as one reference, where letter and text agree."""
    letter, _, text, end = match.groups()
    if option_of(letter) != option_of(text):
        return match[0]
    return reference(OWN, option_of(letter)) if kind_of(text) == TEXT else letter + end
