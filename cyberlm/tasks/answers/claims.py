"""Options that a completion claims: announced, called right, first or on the last line; and what it takes back."""

import re
from collections.abc import Iterator
from itertools import pairwise

from cyberlm.tasks.answers.denials import ADVERB, IS, RIGHT, WRONG
from cyberlm.tasks.answers.events import ANNOUNCED, FINAL, WEAK, Claim, Denial, Events, Retraction
from cyberlm.tasks.answers.references import (
    BARE,
    DENIED,
    LETTER,
    MANY,
    MARKED,
    NAMED,
    OWN,
    REF,
    TEXT,
    any_of,
    kind_of,
    option_of,
)

_NOUN = r"(?:answer|ans|option|choice|solution|selection|response|letter|pick|verdict|conclusion)"
_GOOD = (
    r"(?:final|correct|best|right|true|proper|only|single|accurate|appropriate|suitable|likely|closest|strongest|safest"
    r"|ideal|optimal|preferred|recommended|chosen|selected|intended|expected|remaining|valid|viable|clear|overall"
    r"|possible|short|most\s+(?!wrong|false|in|un|tempt|mislead|dece)\w+)"
)
_FITTING = (
    r"(?:correct|right|true|valid|accurate|best|better|closest|(?:the\s+)?(?:most|more)\s+(?:likely|plausible|probable|correct"
    r"|accurate|appropriate|suitable|fitting|relevant))"
)
_VERB = (
    rf"(?:\s*(?:is|was|are|'s)\b|\s+(?:would|should|must|will|has\s+to|ought\s+to|can\s+only)\s+{ADVERB}be\b"
    r"|\s+(?:is\s+likely|appears?|seems?)\s+to\s+be\b)"
)
# A verdict behind an option, after a mark or a whole sentence: "A) Hash: wrong", "B. Encrypt. This is correct."
_VERDICT = re.compile(
    rf"(?i)(?:(?P<mark>[:=–—|-])|[.;(,\[\n]|\A|(?=[✓✗]))\s*(?:(?:and\s+)?(?:this|that|it|which)\s+(?:(?:one|option|choice|answer"
    rf"|statement)\s+)?(?:is|was)\s+|(?:that|it)'s\s+|is\s+)?{ADVERB}(?:the\s+|an?\s+)?"
    rf"(?:(?P<no>not\s+(?:the\s+)?{RIGHT}|{WRONG}|no(?:pe)?\b|✗)|(?P<yes>correct|right|true|yes|valid|best|✓))"
    rf"(?:\s+(?:answer|option|choice|one|statement))?"
    rf"(?=\s*(?:\Z|[.;:!)\n|\]–—(✓✗]|-\s|{REF}|{DENIED}|,\s*(?:and\s+|but\s+)?{REF}|,?\s*(?:because|since|as|due)\b|(?P<then>,)))"
)
_REASON = (
    rf"(?:{DENIED}|(?:because|since|as|which|due|for|with|based|given|so|but|when|where|while|whereas|although|though"
    r"|however|(?:and\s+)?(?:\w+ly\s+)?not|rather|instead|over|in|on|by|from|here|hence|therefore|thus|i\s+(?:think|believe|guess))\b)"
)
_REFERENCED = rf"""["'(\[*_>#\s-]*(?P<ref>{REF})"""
_ANNOUNCEMENT = re.compile(
    rf"(?i)(?<!\w)(?P<det>(?:the|my|our|this|its)\s+)?(?P<good>(?:{_GOOD}[,\s]+(?:and\s+)?){{1,4}})?"
    rf"(?:(?P<noun>{_NOUN}\b|(?(good)(?:one\b|(?=is\b|was\b))|(?!)))(?P<about>,\s*\w+(?:\s\w+)?,|\s+(?:to|for|here|in|among|of|from|that|which)\b[^.:;!?\n\ue000-\ue1ff]{{0,60}}?)?"
    rf"(?:(?P<verb>{_VERB})[\s:=,.'\"*–—-]*(?:(?P<words>[^.:;!?\n\ue000-\ue1ff]{{1,100}}?)(?={any_of(NAMED, MARKED)}))?"
    rf"|(?P<mark>[\s\"'✓]*[|:=–—-]+\s*)|(?P<gap>\s+)){ADVERB}(?:(?:the|to)\s+)?{_REFERENCED}"
    rf"|(?<=[,\s])(?P<named>{any_of(NAMED, MARKED)}))"
)
_CHOICE = re.compile(
    rf"(?i)(?:\b(?:i|we|let's|let\s+us)(?:'d|'ll|'m|'ve|\s+would|\s+will|\s+am|\s+have|\s+must)?\s+{ADVERB}"
    r"(?:choos\w+|chose\w*|pick\w*|select\w*|go(?:ing)?\s+(?:with|for)|say|vot\w+\s+for|opt\w*\s+for|answer|conclude"
    r"|think|believe|guess)\s+(?:that\s+)?(?:(?:it|the\s+answer)(?:'s|\s+is|\s+must\s+be)\s+)?"
    rf"|\byou\s+should\s+(?:choose|pick|select)\s+|\b(?:chang\w+|switch\w*)\s+(?:my\s+|the\s+)?(?:answer\s+)?to\s+){ADVERB}{_REFERENCED}"
)
_PREDICATE = re.compile(
    rf"(?i)(?P<ref>{REF})[\"'*_)]*\s*,?\s+(?:it\s+is\b|(?:(?:is|are|was|would\s+be|must\s+be|should\s+be|has\s+to\s+be|remains)"
    rf"|(?P<seems>seems|appears|looks)(?:\s+to\s+be)?)\s+{ADVERB}(?:(?:(?:the|my|our)\s+)?(?:{_GOOD}\s+){{0,3}}(?:answer|{_GOOD}\s+(?:{_NOUN}|one"
    rf"|statement|match|fit))\b|(?:the\s+)?{_FITTING}(?=\s*(?:[.,;:!)\n]|\Z|(?:because|since|as|for|here|and|but|while)\b))))"
)
_LED = re.compile(
    rf"(?i)(?:(?:^|[.!?;:,\n–—(]|\b(?:and|but|so|that|then|means|makes)\b)\s*(?P<lead>(?:(?:so(?:\s+(?:is|are))?|therefore|thus|hence|actually|yes"
    r"|no|nope|wait|instead|rather|correction|sorry|ultimately|in\s+conclusion|to\s+conclude|overall|i\s+meant?|make\s+that|oops|edit|strike\s+that|apologies|i\s+apologi[sz]e"
    r"|(?:it|answer)(?:'s|\s+is|\s+(?:must|should|would|has\s+to)\s+be))[,.:\s]+){1,5})"
    rf"|{DENIED}\s*[,;–—]?\s*but\s+(?:rather\s+)?|\A\W*(?:it(?:'s|\s+is)\s+)?(?:not|isn't)\s+{DENIED}\s*[,;.]\s*)"
    rf"{ADVERB}{_REFERENCED}"
)
_POINTED = re.compile(
    rf"(?i)\b(?:correspond(?:s|ing)?\s+to|match(?:es|ing)?|points?\s+to|leaves?(?:\s+us\s+with)?|leaving(?:\s+us\s+with)?|left\s+with"
    rf"|(?:this|that)(?:'s|\s+is))\s+(?:only\s+)?(?P<ref>{any_of(BARE, NAMED, MARKED, OWN)})"
)
_HEAD = re.compile(
    r"(?i)\A(?:[>#*|:\s\"'(\[-]+|\d+[.):]\s+|(?:sure|ok|okay|yes|certainly|of\s+course|well|so|thus|therefore|hence|clearly"
    r"|probably|likely|definitely|correct|right|final|if\s+i\s+had\s+to\s+(?:guess|choose)|i\s+(?:think|believe|guess)(?:\s+that)?"
    r"|(?:it|this|that)(?:'s|\s+is|\s+(?:would|must|should|has\s+to)\s+be)(?:\s+(?:most\s+)?(?:likely|probably))?"
    rf"|(?:the\s+)?{_GOOD}\s+is|in\s+conclusion|✓)[,.!:\s]+){{0,6}}(?P<ref>{REF})"
)
_LAST_LINE = re.compile(rf"\n[\s>#*|\"'(\[-]*(?P<ref>{any_of(BARE, NAMED, MARKED, OWN)})[\s.)|\"'\]*]*\Z")
_BLOCKED = re.compile(
    r"(?i)\b(?:not|never|no(?!\s+doubt)|nor|neither|cannot|\w+n't|if|unless|whether|suppos\w+|assum\w+|might|may|could|"
    r"thought|think(?=\s+the\s+user)|some(?:one)?|many|people|students?|user|they|initially|first|previous\w*|original\w*|"
    r"tempt\w+|mistake\w*|trap|imagine|pretend|unlikely|(?<!no\s)(?<!out\s)(?<!a\s)doubt\w*|hardly|seemed|disagree\w*|den(?:y|ies|ied)|opposite|misconception|myth|fallacy|false\s+that|avoid(?:ed)?(?=\s*\Z)"
    r"|unclear|unsure|hard|ask\w*|wrong|incorrect|least|worst)\b"
)
_SEARCHED = re.compile(
    r"(?i)\b(?:find\w*|determin\w+|figure|consider\w*|analy\w+|examin\w+|evaluat\w+|look\w*|review\w*|compar\w+|check\w*"
    r"|discuss\w*|identif\w+|choos\w+|select\w*|pick\w*|explain\w*|start\w*|begin\w*|go\w*|read\w*|need\w*)\b"
)
_CONNECTIVES = frozenset(
    [
        *("so", "thus", "therefore", "hence", "then", "and", "but", "is", "are", "that", "because", "since", "as"),
        *("think", "believe", "say", "here", "now", "conclude", "means", "ok", "yes", "final"),
    ]
)


def claims(text: str) -> Iterator[tuple[int, Claim]]:
    yield from _head(text)
    for match in _ANNOUNCEMENT.finditer(text):
        if _announces(match):
            past = "was" in (match["verb"] or "")
            strength = WEAK if past else FINAL if "final" in (match["good"] or "").lower() else ANNOUNCED
            yield from _standing(text, match.start("ref" if match["ref"] else "named"), strength)
    for pattern, strength in ((_CHOICE, ANNOUNCED), (_LED, ANNOUNCED), (_POINTED, WEAK)):
        for match in pattern.finditer(text):
            start = match.start("lead" if pattern is _LED else 0)  # -1: behind what is denied
            if start < 0 or not _BLOCKED.search(_clause(text[:start])):
                yield from _standing(text, match.start("ref"), strength)
    for match in _PREDICATE.finditer(text):
        if not _is_open(text[match.end() :]) and _is_subject(text, match.start()):
            yield match.start(), _claim(match["ref"], WEAK if match["seems"] else ANNOUNCED)
    yield from _last_line(text)


def _claim(reference: str, strength: int) -> Claim:
    if reference == MANY:
        return Claim(None, strength, True)
    return Claim(option_of(reference), strength, kind_of(reference) in (OWN, TEXT))


def _clause(before: str) -> str:
    """The words of the same clause that precede."""
    return re.split(r"[.,;:!?\n–—(]", before[-200:])[-1]


def _announces(match: re.Match[str]) -> bool:
    """Tell "the correct answer is", which announces an option, from "each option:", which does not."""
    clause = _clause(match.string[: match.start()])
    words = re.findall(r"\w+", clause)
    if match["named"]:
        return bool(match["det"] and match["good"]) and not _BLOCKED.search(clause)
    if _BLOCKED.search(clause) or _BLOCKED.search(f"{match['about'] or ''} {match['words'] or ''}"):
        return False
    if not match["det"] and words and words[-1].lower() not in _CONNECTIVES:
        return False
    if match["gap"]:
        return not match["det"] and not words
    if match["mark"]:
        plain = match["noun"].lower() not in ("answer", "ans") and not match["good"]
        return not (plain and match["det"]) and not _SEARCHED.search(clause)
    return True


def _standing(text: str, at: int, strength: int) -> Iterator[tuple[int, Claim]]:
    """Claim of the reference at a place, if what follows allows it as an answer."""
    after, name = text[at + 1 :], text[at]
    if _has_more(after):
        name = MANY
    if _is_open(after) or _is_recited(text, at, within=1):
        return
    closed = re.match(
        rf"""(?i)["'*_)\]]*\s*(?:\Z|[\n,;:!)\]✓|]|\.(?!\s[a-z]+\.?\Z)|[–—-](?:\s|\Z)|\((?![^()]*\)\s*\w)|{_REASON})""",
        after,
    )
    if name == MANY or kind_of(name) in (MARKED, OWN) or closed:
        yield at, _claim(name, strength)


def _has_more(after: str) -> bool:
    """Test for "or" behind a reference: another answer follows."""
    return bool(re.match(r"(?i)[\s,;.]*(?:or|and/or)\b", after))


def _is_open(after: str) -> bool:
    """Test the rest of a sentence for a question mark or a condition."""
    return bool(
        re.match(r"(?i)[^.!?;\n]{0,300}\?|[^\S\n]*,?[^\S\n]*(?:only\s+)?(?:if|unless|assuming|provided)\b", after)
    )


def _is_subject(text: str, at: int, start: int = 0) -> bool:
    """Test for a reference that begins a clause which asserts; an option's text may be a part of other words."""
    clause = _clause(text[start:at])
    if _BLOCKED.search(clause):
        return False
    words = re.findall(r"\w+", clause)
    return kind_of(text[at]) != TEXT or not words or words[-1].lower() in _CONNECTIVES


def _head(text: str) -> Iterator[tuple[int, Claim]]:
    """Claim of an option that comes first."""
    match = _HEAD.match(text)
    if match is None or _is_open(text[match.end() :]):
        return
    at, after = match.start("ref"), text[match.end() :]
    name = MANY if _has_more(after) else match["ref"]
    kind = None if name == MANY else kind_of(name)
    if re.match(rf"""(?i)["'*_)\]]*\s*(?:\Z|[.!;\n✓]|,?\s*\(?{_REASON})""", after) or (
        kind != TEXT and after[:1] == ","
    ):
        strength = FINAL
    elif kind is None:
        strength = WEAK  # "A and C are similar."
    elif kind in (MARKED, OWN) or (kind != TEXT and re.match(r"\s*[:|(–—]|\s*-(?:\s|\Z)", after)):
        strength = ANNOUNCED
    else:
        return
    said = re.match(r"[.:;)–—-]*[^\S\n]*([^.;\n]*)", after)
    assert said
    wrong = re.search(rf"(?i)\b{IS}\s+{ADVERB}(?:not\s+{ADVERB}(?:the\s+)?{RIGHT}|{WRONG})\b", said[1])
    if (not wrong or DENIED in said[1]) and not _is_recited(text, at):
        yield at, _claim(name, strength)


def _is_recited(text: str, at: int, within: int | None = None) -> bool:
    """Test for a list of the options from this one on, as they are in the question.

    Args:
        within: Lines below that are looked at; all of them, and the same line, if None.
    """
    line, _, below = text[at + 1 :].partition("\n")
    rest = below.strip("\n").split("\n", 1)[0] if within else f"{line}\n{below}"
    rest = re.split(
        r"(?i)\b(?:explanation|reason\w*|because|rationale|analysis|note|why|others?|here's|let's)\b", rest, maxsplit=1
    )[0]
    alone = text[at] != MANY and kind_of(text[at]) != OWN and not re.search(r"\w", line)
    listed = re.finditer(
        rf"(?:\A|\n|[.!?;]\s)[\s>#*|.\d-]*(?P<ref>{any_of(BARE, NAMED, MARKED, OWN, TEXT)})"
        r"(?=(?P<bare>[.)]*\s*(?:\n|\Z))?)(?P<mark>\s*(?:[.:)|–—]|-\s|\n|\Z))?",
        re.sub(rf"\s(?={LETTER}:)", "\n", f"\n{rest}"),
    )
    for item in listed:
        ahead = option_of(item["ref"]) - option_of(text[at])
        other = item["ref"] != text[at] and (text[at] == MANY or (ahead == 1 if within else ahead != 0))
        marked = item["mark"] is not None or kind_of(item["ref"]) in (MARKED, OWN)
        said = kind_of(item["ref"]) != OWN and re.match(rf"\s+(?:{IS}|would|does|do)\b", f"\n{rest}"[item.end("ref") :])
        if other and marked and not said and (item["bare"] is not None or not alone):
            return True
    return False


def _last_line(text: str) -> Iterator[tuple[int, Claim]]:
    """The claim of an option that is all of the last line, unless it is the next one of a list that was cut off."""
    match = _LAST_LINE.search(text)
    if match is None:
        return
    before = text[: match.start()]
    listed = re.findall(rf"(?:\A|\n)[\s>#*|-]*({any_of(BARE, NAMED, MARKED, OWN)}|{DENIED})", before)
    names = [char for char in listed if char != DENIED]
    following = option_of(names[-1]) + 1 if names else 0
    opened = re.search(r"(?i)\b(?:options|choices|each|every|analy\w+|let's|consider|one\s+by\s+one)\b|:\s*\Z", before)
    if (re.search(r"\w\w", before) or any(kind_of(char) == OWN for char in names)) and (
        option_of(match["ref"]) != following or not (names or opened)
    ):
        yield match.start("ref"), _claim(match["ref"], WEAK)


def verdicts(text: str) -> tuple[str, Events]:
    """Verdicts behind options; an option that is called wrong becomes `DENIED`."""
    events: Events = []
    characters = list(text)
    places = [match.start() for match in re.finditer(f"{REF}|{DENIED}", text)]
    judged = 0  # up to where words belong to the verdict before
    for at, after in pairwise([*places, len(text)]):
        if text[at] in (MANY, DENIED):
            continue
        verdict = _VERDICT.search(text[at + 1 : after + 1][:300])
        if verdict is None or (verdict["yes"] and verdict["then"] and not verdict["mark"]):
            continue
        if verdict["no"]:
            characters[at] = DENIED
            events.append((at, Denial(option_of(text[at]))))
        elif _is_subject(text, at, judged):
            events.append((at, _claim(text[at], ANNOUNCED)))
        judged = at + 1 + verdict.end()
    return "".join(characters), events


_RETRACTION = re.compile(
    r"(?i)(?:^|[.!?;,\n–—-])\s*(?:(?:but|oh|hmm+|um|ah|so|no|actually)[,.\s]+){0,3}"
    r"(?:(?P<open>wait|hold\s+on|(?:scratch|strike)\s+that|on\s+second\s+thought|on\s+reflection|upon\s+re\w+|let\s+me\s+(?:re|double|change|correct)"
    r"|i\s+made\s+an?\s+(?:mistake|error)|oops|my\s+mistake|i\s+was\s+wrong|(?:that|this|it)(?:'s|\s+is|\s+was)\s+(?:wrong|incorrect|not(?=[.!]|\s+what\s+(?:is|was|the\s+question)\b))"
    r"|(?:that|this|it)\s+(?:can't|cannot)\s+be(?:\s+(?:it|right|correct|true)|(?=[.!]|\Z))|just\s+kidding)"
    r"|actually|no|nope|correction|sorry|(?:my\s+)?apologies|i\s+apologi[sz]e|edit(?=:)|i\s+meant?|instead|rather)\b(?P<unsure>[,\s]+(?:maybe|perhaps|possibly|it\s+(?:could|might|may)))?(?!\s+(?:doubt|than|other|matter|need))"
)


def retractions(text: str) -> Iterator[tuple[int, Retraction]]:
    for match in _RETRACTION.finditer(text):
        yield match.start(), Retraction(bool(match["open"] or match["unsure"]))
