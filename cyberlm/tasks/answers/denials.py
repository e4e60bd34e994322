"""Options that a completion denies, mentions aside, or names together: none of these is its answer."""

import re

from cyberlm.tasks.answers.events import Denial, Events
from cyberlm.tasks.answers.references import (
    DENIED,
    JOIN,
    LETTER,
    MANY,
    OWN,
    PART,
    REF,
    TEXT,
    any_of,
    kind_of,
    option_of,
)

ADVERB = (
    r"(?:(?:(?:most\s+|very\s+)?(?:likely|probably)|definitely|clearly|certainly|obviously|therefore|thus|hence|indeed"
    r"|simply|just|actually|also|all|both|then|surely|undoubtedly|in\s+fact|of\s+course|now|still|really|✓)[,\s]+){0,4}"
)
RIGHT = r"(?:correct|right|true|valid|accurate|appropriate|suitable|applicable|best|answer|option|choice)"
WRONG = (
    r"(?:incorrect|wrong|false|invalid|untrue|inaccurate|inappropriate|unsuitable|unlikely|irrelevant|unrelated"
    r"|ruled\s+out|eliminated|excluded|out|distractors?|worst\s+(?:answer|option|choice)"
    r"|least\s+(?:likely|plausible|probable|appropriate|suitable|correct|accurate|relevant|applicable))"
)
IS = r"(?:is|are|was|were|would\s+be|must\s+be|should\s+be|can\s+be|seems|looks|being|'s)"
_LIST = rf"{REF}(?:(?:\s*,\s*{REF}){{0,9}}\s*,?\s*(?:\b(?:and|or|nor)\b|[&/])\s*{REF})?"
_PLURAL = r"(?=\s+(?:are|were|do|would|can|could|have|all|both|fail|aren't|don't|cannot|only|which)\b)"
_SUBJECT = rf"(?:{REF}(?:\s*(?:[,&/]\s*|\b(?:and|or|nor)\b\s*)+{REF}){{1,9}}{_PLURAL}|{REF})"
_FILLER = r"(?:(?:be|the|options?|choices?|answers?|all|of|out|either|both)\s+){0,4}"
# What denies an option.
_DENIAL = re.compile(
    rf"(?i)(?:\b(?:not|nor|neither|none\s+of|rul(?:e|es|ed|ing)\s+out|eliminat\w+|exclud\w+|discard\w*|reject\w*"
    rf"|dismiss\w*)|n't)\s+{_FILLER}(?P<before>{_LIST})"
    rf"|(?P<after>{_SUBJECT})\s*,?\s*(?:(?:both|all|each|therefore|thus|which|that)\s+){{0,3}}"
    rf"(?:(?:{IS}\s+(?:not|never|no\s+longer)|\w+n't(?:\s+be)?|cannot\s+be)\s+{ADVERB}(?:(?:the|an?)\s+)?"
    rf"(?:(?!only\b)\w+\s+)?{RIGHT}|{IS}\s+{ADVERB}(?:(?:the|an?)\s+)?(?:(?!not\b)\w+\s+)?{WRONG})\b"
)
# "If the question were about secrecy, the answer would be", "At first glance,"
_SUPPOSED = (
    r"(?:\A|[.!?;:,\n]\s*|\b(?:but|and)\s+)(?:(?=(?:if|had|were)\b[^.!?;\n]{0,200}\bwould\b)"
    r"(?:if\b(?!\s+\w+\s+had\s+to\b)[^.!?;\n\ue000-\ue1ff]{1,100}?\b(?:were|was|had|did|didn't|asked|meant|concerned|wanted|needed)|had|were)"
    r"|at\s+first(?:\s+(?:glance|sight))?|on\s+the\s+surface|superficially)\b[^.!?;\n\ue000-\ue1ff]{0,100}?"
)
# A mention of an option that neither names nor denies it. An answer with its text, once announced, may begin a
# sentence on itself: "The answer is C. MD5 cannot resist collisions."
_ASIDE = re.compile(
    rf"(?i)(?:{_SUPPOSED}|\b(?:rather\s+than|instead\s+of|as\s+opposed\s+to|unlike|over|than|between|except(?:\s+for)?|other\s+than|besides"
    rf"|apart\s+from|(?:all|every\w*|any\w*)\s+(?:\w+\s+)?but)\s+{_FILLER})(?P<before>{_LIST})"
    rf"|(?:(?<!\bis\s)(?<!\bbe\s)(?<!answer:\s)|(?!{any_of(OWN)}))(?P<after>{_SUBJECT})(?:(?<={any_of(OWN)}),)?\s+(?:\w+\s+)?(?:(?:{IS}|do|does|did|can|could|would|will|should|has|have)\s+(?:(?!the\b)\w+\s+)?"
    rf"(?:not|never|no|only|merely)\b(?!\s+(?:only|wrong|incorrect|false))|\w+n't\b|cannot\b|fails?\b|lacks?\b"
    rf"|only\s+\w|merely\b)"
)
_SEPARATOR = (
    r"(?:[^\S\n]|[,;/&+|>:=–—(\[-]|\.(?=\s*(?:or|and|maybe|possibly|perhaps|also|alternatively)\b)"
    r"|\b(?:and|or|nor|vs|versus|plus|to|maybe|possibly|perhaps|also|even|both|either|but\s+also|as\s+well\s+as"
    r"|along\s+with|together\s+with|the|option|choice|answer|could\s+be|might\s+be|alternatively)\b\.?)+"
)
_LISTED = re.compile(rf"(?i){REF}(?:{_SEPARATOR}{REF})+")
_LETTER_AND_OTHER_TEXT = re.compile(rf"({LETTER})({JOIN})({any_of(TEXT, PART)})")
_REFERENCE = re.compile(REF)


def without_denied(text: str) -> tuple[str, Events]:
    """The text with `DENIED` in place of what it denies or mentions aside, and the denials."""
    denials: Events = []
    for pattern in (_DENIAL, _ASIDE):
        characters = list(text)
        for match in pattern.finditer(text):
            name = "before" if match["before"] else "after"
            for at in range(*match.span(name)):
                if not _REFERENCE.match(text[at]):
                    continue
                characters[at] = DENIED
                if pattern is _DENIAL and text[at] != MANY and (name == "after" or kind_of(text[at]) != TEXT):
                    denials.append((at, Denial(option_of(text[at]))))
        text = "".join(characters)
    return text, denials


def with_lists(text: str) -> str:
    """The text with `MANY` in place of options that are named together, and of a letter with another option's text."""

    def many(match: re.Match[str]) -> str:
        named = {option_of(char) for char in match[0] if _REFERENCE.match(char) and char != MANY}
        return match[0] if len(named) == 1 and MANY not in match[0] else _REFERENCE.sub(MANY, match[0])

    def disagreement(match: re.Match[str]) -> str:
        apart = "\n" in match[2] and not re.match(r"[.\s]*(?:\n|\Z)", match.string[match.end() :])
        return match[0] if apart else f"{MANY}{match[2]}{MANY}"

    return _LETTER_AND_OTHER_TEXT.sub(disagreement, _LISTED.sub(many, text))
