"""One spelling of a completion: no thoughts, no later turn, no markup."""

import re
import string
import unicodedata

_TICKS, _CROSSES = "✅✔☑✓🗸👍🟢√", "❌✗✘✖☒🚫👎🔴❎⛔×☐"
_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′", "'"),
        **dict.fromkeys("“”„‟″", '"'),
        **dict.fromkeys("→⇒➡➔➜⟶⟹▶", ":"),
        **dict.fromkeys("【〔「『〈《", "["),
        **dict.fromkeys("】〕」』〉》", "]"),
        **dict.fromkeys(_TICKS, "✓"),
        **dict.fromkeys(_CROSSES, "✗"),
        **dict.fromkeys("\u115f\u1160\u2800\u20e3", None),  # invisible, or around a key cap
        **dict.fromkeys(map(chr, range(0xFE00, 0xFE10)), None),  # variation selectors
        **{chr(first + k): letter for first in (0x1F150, 0x1F170) for k, letter in enumerate(string.ascii_uppercase)},
        **{"。": ".", "、": ",", "•": "-", "●": "-", "▪": "-", "\u2028": "\n", "\u2029": "\n", "«": "<<", "»": ">>"},
    }
)
_THOUGHT = re.compile(
    r"(?is)<(?P<tag>(?:seed:)?think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|analysis)>.*?(?:</(?P=tag)>|\Z)"
    r"|\[THINK\].*?(?:\[/THINK\]|\Z)"
)
_THOUGHT_END = re.compile(
    r"(?s)\A.*(?:</(?:seed:)?think(?:ing)?>|\[/THINK\]|assistantfinal|<\|channel\|>final<\|message\|>)"
)
_CUT_THOUGHT = re.compile(r"(?s)\A\s*(?:analysis(?=[A-Z])|<\|channel\|>analysis).*")
# A base model that is not stopped goes on with a question of its own; what it answers there does not count.
_NEXT_TURN = re.compile(
    r"(?i)<\|(?:eot_id|eom_id|im_end|end_of_text|endoftext|end)\|>|</s>|<end_of_turn>|\[INST\]"
    r"|\n[\s#>*]*(?:question|q|user|human|problem|instruction|input|exercise)\s*\d*\s*[:.)]"
    r"|\n\s*\d+[.)]\s[^\n]*\?\s*\n|\n[^\n]*\?\s*\n\s*\(?A[).:]"
)
_SPECIAL = re.compile(r"<\|[^|>\n]*\|>|<s>|<bos>|\[/INST\]|\A\s*(?:assistant|ai|bot|model)\s*[:\n]", re.IGNORECASE)
_NAMES_ANSWER = r"(?:answer|choice|option|letter|selection|response|prediction)"
_JSON_KEY = re.compile(
    rf"""(?i)(["'])(?!\w*(?:wrong|incorrect|other|alternative))(?:\w+[_ ])?{_NAMES_ANSWER}"""
    r"""(?:[_ ](?:letter|option|choice|key|index))?\1\s*:\s*"""
    r"""(?:\[\s*(?P<list>[^\]]*)|"(?P<double>(?:[^"\\]|\\.)*)|'(?P<single>(?:[^'\\]|\\.)*))"""
)
_MARKUP = (
    (r"(?s)~~[^~\n]+~~|<del>.*?</del>", ""),
    (r"```(?:[a-z]{2,}\n)?", "\n"),
    (
        r"\\(?:text\w*|math\w+|rm|bf|mbox|operatorname|emph|underline|bold\w*|large|Large|huge|Huge)\s*\{([^{}]*)\}",
        r"\1",
    ),
    (r"\\(?:f|frame)?box(?:ed)?\s*\{?([^{}\n]*)\}?", r"\nFinal answer: \1\n"),
    (r"\\[()\[\],;! ]|\$", " "),
    (r"(?i)<(?:final[_ -]?)?(?:answer|choice|option)>", "\nFinal answer: "),
    (r"<<?\s*([A-Z])\s*>>?(?![^\n]*</)", r"(\1)"),
    (r"</?[A-Za-z][\w-]*/?>", "\n"),
    (r"(?<=\S)[^\S\n]*####", "\n"),
    (r"(?<!\S)(?:[*_]+|==+)(?!\S)|==(?=\S)|(?<=\S)==", " "),
    (r"\[[xX]\]", "✓"),
    (r"\[ \]", "✗"),
    (r"-{1,2}>|={1,2}>", ":"),
    (r"([(\[{])\s*([A-Za-z])\s*([)\]}])", r"\1\2\3"),
)


def spelled(text: str) -> str:
    """The text with one character for those that look the same, and no invisible ones."""
    text = unicodedata.normalize("NFKC", text.replace("\r\n", "\n")).translate(_SAME)
    kept = ((char, unicodedata.category(char)) for char in text)
    return "".join(
        " " if kind in ("So", "Cc") and char not in "✓✗\n\t" else char
        for char, kind in kept
        if kind not in ("Cf", "Co")
    )


def _without_emphasis(text: str) -> str:
    """`**B**` -> `B`; an asterisk or a backtick that is not one of a pair stays."""
    return re.sub(r"`+([^`\n]+)`+", r"\1", re.sub(r"(\*{1,3}|__)(?=\S)([^\n]+?)(?<=\S)\1", r"\2", text))


def folded(text: str) -> str:
    """Text as it is compared: one case, single spaces, no emphasis, no quotes around it, no punctuation at its end."""
    return " ".join(_without_emphasis(spelled(text)).split()).casefold().strip(" \"'`").rstrip(" .,;:!?\"'`")


def readable(completion: str) -> str:
    """Text of a completion after its thoughts and before a next turn."""
    text = _CUT_THOUGHT.sub("", _THOUGHT_END.sub("", _THOUGHT.sub("\n", spelled(completion)))).strip()
    text = _SPECIAL.sub("\n", _NEXT_TURN.split(text, maxsplit=1)[0])
    for run, kept in ((r"[^\S\n]+", " "), (r"(?: ?\n){3,}", "\n\n"), (r"([^\w\s])\1{4,}", r"\1" * 4)):
        text = re.sub(run, kept, text)
    return _without_emphasis(text).strip()


def without_markup(text: str) -> str:
    text = _json_as_text(text)
    for pattern, replacement in _MARKUP:
        text = re.sub(pattern, replacement, text)
    # "✓ B ✗ A" -> "B ✓ A ✗": a mark before its option goes behind it.
    marked = (
        re.sub(r"([✓✗])([^✓✗]+)", r"\2 \1 ", line) if re.match(r"[\s>#*|-]*[✓✗]", line) else line
        for line in text.split("\n")
    )
    return "\n".join(marked).strip()


def _json_as_text(text: str) -> str:
    """The first JSON object, be it cut off, as the answers that it holds; one without an answer as its bare pairs."""
    start = re.search(r"""\{\s*["']""", text)
    if start is None:
        return text
    end = text.rfind("}") + 1 or len(text)
    held = text[start.start() : end]
    found = [next(filter(None, match.group("list", "double", "single")), "") for match in _JSON_KEY.finditer(held)]
    plain = "".join(f"\nFinal answer: {value}\n" for value in found) or re.sub(r"""["'{}]""", " ", held)
    return text[: start.start()] + plain + text[end:]
