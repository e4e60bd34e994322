"""From a generated completion to the option it names, or None. Strict: what can be read in two ways names nothing.

A completion makes a *claim* where a letter stands first in it (`B) Encrypt data`) or after words that announce an
answer (`so the answer is (B)`). A claim counts only if what follows the letter agrees with it, and all claims of one
completion must name the same option. Guessing would turn a model that answers badly into one that answers at random.
"""

import re
import unicodedata
from collections.abc import Sequence

from cyberlm.records import LETTERS

_STRAIGHT_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"'})

# Markup around an answer, and what it becomes before the answer is looked for.
_MARKUP = (
    (r"(?is)<think>.*?(?:</think>|\Z)", "\n"),
    (r"<\|[^|>]*\|>|</?s>", "\n"),  # special tokens
    (r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}", r"\1"),
    (r"\\boxed\{([^{}]*)\}", r"\nAnswer: \1\n"),
    (r"(?i)<(?:final[_ -]?)?answer>", "\nAnswer: "),
    (r"</?[A-Za-z][\w-]*>", "\n"),
)
# A base model that is not stopped goes on with a question of its own; what it answers there does not count.
_NEXT_TURN = re.compile(r"(?i)\n\s*(?:question|q\d*|user|human)\s*[:.]")

_ADJECTIVES = r"(?:(?:final|single|most|correct|best|right|likely|accurate|appropriate|suitable)\s+)*"
_ANNOUNCED = rf"(?:the\s+|my\s+)?{_ADJECTIVES}(?:answer|ans|choice|option|solution|selection|response|letter)\b"
_COPULA = r"""["']?\s*(?:(?:is|was|(?:would|should|must|will)\s+be)\b(?:\s*[:=](?!:))?|[:=-])\s*"""
_ADVERB = r"(?:(?:most\s+likely|likely|probably|definitely|clearly|therefore|thus|hence|indeed)[,\s]+)?"
_NOUN = r"(?:(?:the\s+)?(?:option|choice|letter|answer)\s*[:=]?\s*)?"
_LETTER = r"""[(\[{"'*_]*(?P<letter>[A-Ha-h])(?![\w+#]|'\w)"""
_DELIMITER = r"""(?P<delimiter>["')\]}*_]*(?:[.:;]|[^\S\n]+[-–—](?=\s)|[^\S\n]*\()?["'*_]*)"""

_HEAD = re.compile(
    r"(?i)(?:[-•>#*]+\s|\s)*[>#*]*"
    r"(?:(?:sure|ok|okay|yes|certainly|so|thus|therefore|hence)[,.!:]*\s+)?"
    rf"(?:(?:it\s+is|it's|that's|that\s+is|this\s+is)\s+)?{_NOUN}{_LETTER}{_DELIMITER}"
)
_CHOOSE = (
    r"\bi(?:'d|'ll|\s+would|\s+will)?\s+"
    r"(?:choose|pick|select|go\s+with|say|think\s+it\s+is|think\s+it's|believe\s+it\s+is)\s+"
)
_VERDICT = re.compile(
    rf"(?i)(?:\b{_ANNOUNCED}(?:\s+(?:to|for|here)\b[^.:\n]{{0,60}}?)?{_COPULA}|\bcorrect\s*[:=]\s*|{_CHOOSE})"
    rf"{_ADVERB}{_NOUN}{_LETTER}{_DELIMITER}"
)
_TEXT_LEAD = re.compile(rf"(?i)\A[\s#>*-]*{_ANNOUNCED}{_COPULA}")
_NEGATED = re.compile(r"(?i)\b(?:not|never|no|nor|neither|cannot|if|unless|whether|wrong|incorrect|false|\w+n't)\b")

# Read in normalised, hence lower-case, text. A lone `a` is an article unless something marks it as a letter.
_OTHER_LETTER = re.compile(
    r"(?<![\w.])[(\[]?(?P<marked>[a-h])[)\]]"
    r"|(?<![\w.])(?P<stopped>[b-h])[.:](?=\s|$)"
    r"|(?:^[\s,/&+]*|\b(?:or|and|nor|versus|vs\.?)\s+)(?:(?:or|and|maybe|possibly|perhaps|option|choice|answer)\s+)*"
    r"(?P<listed>[b-h](?![\w+#&-]|\.g\b)|a(?=\s*(?:$|[.,;:?!/&])))"
)
# What sets a letter off from an explanation; neither `e.g.` nor `C:\Windows` is an answer.
_DELIMITED = re.compile(r"""["'*_]*(?:[)\]}]|[.:;](?![a-z\\/])|\s*\(|\s+[-–—]\s)""")
_OPTION_LINE = re.compile(r"(?i)[-•*\s]*[(\[]?(?P<letter>[A-H])(?:[)\].:]|\s*$)")
_DENIAL = re.compile(
    r"(?:is|was|are|would be|seems)?\s*(?:clearly |also |definitely )?"
    r"(?:not|isn't|wasn't|incorrect|wrong|false|never|invalid)\b"
)
_REASON = re.compile(
    r",?\s*(?:because|since|which|due to|as (?:it|this|that|the)|not [a-h]|is the answer"
    r"|is (?:the )?(?:most )?(?:correct|right|best|appropriate|accurate|likely|suitable)"
    r"(?: (?:answer|option|choice|one))?(?=$|[.,;:!]| because| since| as))\b"
)


def parse_letter(completion: str, options: Sequence[str]) -> int | None:
    """Reads an answer to a question that asks for a letter.

    Args:
        completion: What the model wrote after the prompt.
        options: Texts of the question's options, in the order shown.

    Returns:
        Index of the option that is named by its letter, or by its whole text; None where none is, or more than one.
    """
    text = _without_markup(completion)
    head = _HEAD.match(text)
    claims = [_claimed(head, options)] if head else []
    verdicts = (found for found in _VERDICT.finditer(text) if not _NEGATED.search(_clause_before(found)))
    claims += [_claimed(verdict, options) for verdict in verdicts]
    named = {claim for claim in claims if claim is not None}
    by_text = _text_named(completion, options)
    if by_text is not None and _normalise(options[by_text]).upper() not in tuple(LETTERS):  # a lone letter is a letter
        named.add(by_text)
    return named.pop() if len(named) == 1 else None


def parse_text(completion: str, options: Sequence[str]) -> int | None:
    """Reads an answer to a question that asks for an option's text.

    Equality is of normalised text: case, white space, quotes around it and punctuation at its end do not count.

    Args:
        completion: What the model wrote after the prompt.
        options: Texts of the question's options, in the order shown.

    Returns:
        Index of the option whose text the completion, or its first line, is; also as `B) text` where letter and text
        agree. None for a letter alone, for part of a text, and where two options read the same.
    """
    named = _text_named(completion, options)
    head = _HEAD.match(_without_markup(completion))
    if named is not None or head is None:
        return named
    index = _claimed(head, options)
    if index is None or not head["delimiter"]:
        return None
    return index if _normalise(_rest(head)[0]) == _normalise(options[index]) else None


def _claimed(match: re.Match[str], options: Sequence[str]) -> int | None:
    """The option whose letter was matched, unless what follows the letter speaks for another one or against it."""
    index = LETTERS.index(match["letter"].upper())
    if index >= len(options):
        return None
    rest, more = _rest(match)
    if _line_names_other(more, index, options):
        return None
    tail = _normalise(rest).lstrip("([{\"'")
    if not tail:
        return index
    texts = [_normalise(option) for option in options]
    if tail in texts:
        return index if texts[index] == tail else None
    cut_short = [] if more.strip() else [text for text in texts if text.startswith(tail)]
    if cut_short:
        return index if texts[index] in cut_short else None
    begun = max((text for text in texts if _begins(tail, text)), key=len, default="")
    if begun:
        return index if texts[index] == begun and not _names_other(tail[len(begun) :], index, options) else None
    if _DENIAL.match(tail) or _names_other(tail, index, options):
        return None
    return index if _DELIMITED.match(match["delimiter"] + rest) or _REASON.match(tail) else None


def _rest(match: re.Match[str]) -> tuple[str, str]:
    """What follows a match: the rest of its line, and the lines below."""
    rest, _, more = match.string[match.end() :].partition("\n")
    return rest, more


def _clause_before(match: re.Match[str]) -> str:
    """The words of the same clause that precede a match."""
    return re.split(r"[.,;:!?\n]", match.string[: match.start()])[-1]


def _begins(tail: str, text: str) -> bool:
    """Whether `tail` is `text`, or goes on after it at a word's end."""
    return bool(text) and tail.startswith(text) and not tail[len(text) : len(text) + 1].isalnum()


def _names_other(tail: str, index: int, options: Sequence[str]) -> bool:
    """Whether normalised text refers to another option's letter."""
    others = {letter.lower() for letter in LETTERS[: len(options)]} - {LETTERS[index].lower()}
    return any(others & set(found.groups()) for found in _OTHER_LETTER.finditer(tail))


def _line_names_other(below: str, index: int, options: Sequence[str]) -> bool:
    """Whether the next line is another option, by letter or text: then the options were listed, not one chosen."""
    line = next((line for line in below.splitlines() if line.strip()), "")
    marked = _OPTION_LINE.match(line)
    if marked and LETTERS.index(marked["letter"].upper()) < len(options):
        return LETTERS.index(marked["letter"].upper()) != index
    texts = [_normalise(option) for option in options]
    return _normalise(line) in set(texts) - {texts[index], ""}


def _text_named(completion: str, options: Sequence[str]) -> int | None:
    """The one option whose text is the completion, or its first line."""
    texts = [_normalise(option) for option in options]
    for candidate in (completion, _without_markup(completion)):
        lines = [line for line in candidate.splitlines() if line.strip()]
        for text in (candidate, *lines[:1]):
            wanted = _normalise(_TEXT_LEAD.sub("", text, count=1))
            if not wanted or texts.count(wanted) != 1:
                continue
            index = texts.index(wanted)
            below = "" if text is candidate else "\n".join(lines[1:])
            return None if _line_names_other(below, index, options) else index
    return None


def _without_markup(completion: str) -> str:
    """The completion without tags, LaTeX boxes and emphasis, up to where it poses another question."""
    text = unicodedata.normalize("NFKC", completion).translate(_STRAIGHT_QUOTES)
    for pattern, replacement in _MARKUP:
        text = re.sub(pattern, replacement, text)
    return _NEXT_TURN.split(_without_emphasis(text), maxsplit=1)[0].strip()


def _without_emphasis(text: str) -> str:
    """`**B**` -> `B`; an asterisk or a backtick that is not one of a pair stays."""
    return re.sub(r"`+([^`\n]+)`+", r"\1", re.sub(r"(\*{1,3}|__)(?=\S)([^\n]+?)(?<=\S)\1", r"\2", text))


def _normalise(text: str) -> str:
    """Text as it is compared: one case, single spaces, no emphasis, no quotes around it, no punctuation at its end."""
    straight = _without_emphasis(unicodedata.normalize("NFKC", text).translate(_STRAIGHT_QUOTES))
    return " ".join(straight.split()).casefold().strip(" \"'`").rstrip(" .,;:!?\"'`")
