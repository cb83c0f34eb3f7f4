"""Which option a prose text states to be the answer: statements first, then what is named in brackets or by text.

Each kind of statement says its letter in its own way. A capital letter alone states nothing: N/A, 21 °C and John F.
Kennedy hold one. Doubt, denial, and a second option take a statement back.
"""

import re
from collections.abc import Iterator

from rewards.verifiers.option_set import OptionSet, letters_of, normal
from rewards.verifiers.truth import read_truth
from rewards.verifiers.verifier import only

_MAX_STATEMENTS = 30  # a text with more states nothing
_NEAR = 400  # how many characters on each side of a statement may take it back
_END = r"(?![A-Za-z0-9_'’(/°^=+])(?!\.[A-Za-z])"  # a letter that ends here, where Chinese may go on
_LETTER = rf"[(（\[*\"'“]{{0,4}}(?P<key>[A-Z]){_END}"
_LEAD = r"(?:\b(?:so|thus|hence|therefore|clearly|finally|then|that|and|but|because)\b,?\s*|[:：,，。]\s*|^\s*)"
_STATED = [
    re.compile(
        r"(?i:\b(?:answers?|choice|option|choose|choosing|select|selected|pick|picked)\b|答案|选择|选项?|应为)"
        r"(?:[\s:：*]|\b(?i:is|are|should|must|be|would|will|option|choice|the|correct|letter|as)\b|是|为|项|应|该){0,12}"
        rf"{_LETTER}"
    ),
    re.compile(
        rf"{_LEAD}(?i:(?:the\s+)?(?:option|choice)\s+)?{_LETTER}[)）\]*\"'”]{{0,6}}\s+(?i:(?:is|would\s+be|must\s+be)\s+"
        r"(?:the\s+)?(?:only\s+)?(?:correct|right|best)\b(?!\s+(?:triangle|angle|side|hand|of)))",
        re.IGNORECASE,
    ),
    re.compile(rf"{_LETTER}\s*(?:选项|项)?\s*(?:是|为)?(?:正确|对)(?:的|选项|答案)?|(?P<key2>[A-Z])\s*(?:选项|项)"),
]
_NAMED = re.compile(
    r"\b(?:is|are|be|was|were)\s*:?\s*(?:[(（\[](?P<key>[A-Z])[)）\]]|(?P<key2>[A-Z])(?=\s*(?:[.!。]*\s*$|[.!。]\s)))"
)
_BRACKETED = re.compile(r"(?<![\w'.$\\^_{~!¬-])[(（\[](?P<key>[A-Z])[)）\]](?![\w'^_=+({])")
_LAST_LETTER = re.compile(r"((?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?)([a-z])(\)?[\s.]*)$", re.IGNORECASE)
_LOWER_RIGHT = re.compile(r"^(\s*(?:option|choice)\s+[(\[]?)([a-z])([)\]]?\s+(?:is|would|must)\s)", re.IGNORECASE)
_MORE = re.compile(
    r"\s*[)）\]*\"'”]*\s*(?:,|、|(?i:and|or)\b|&|/|或|和)\s*[(（\[]?(?:option\s+)?[A-Z](?![A-Za-z0-9_'’])"
)
_NEGATION = re.compile(
    r"\b(?:not|isn['’]?t|aren['’]?t|wasn['’]?t|(?:do|does|did|ca|wo|would|should|could)n['’]t|cannot|never|incorrect|wrong"
    r"|false|eliminate[ds]?|exclud(?:e[ds]?|ing)|neither|nor|none|except|unlikely|rather\s+than|instead\s+of|other\s+than"
    r"|(?:anything|everything|all|any)\s+but|besides|without|ruled?\s+out|reject(?:ed|s)?|deny|denied|doubt)\b"
    r"|不|错|非|排除|除了|没|[❌✗✘✖¬]|\\(?:not|lnot|neg|bar|overline|cancel|xcancel|bcancel|sout|complement)(?![a-z])",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:either|maybe|perhaps|possibly|might|could\s+be|unsure|not\s+sure|if|suppose|assume|assuming|whether|unless"
    r"|guess(?:ing)?|both\s+[(]?[A-Z]\b)|[?？]|可能|也许|或者|如果|假设",
    re.IGNORECASE,
)
_ALTERED = re.compile(
    r"\b(?:no|non|anti|zero|un|pseudo|quasi|semi|ex|former|fake|hardly|scarcely|barely|far\s+from|nothing|nobody|opposite)\b"
    "|[~!¬#-]\\s*\x00|\x00(?:-\\w|['’′](?!s\\b)|[*^_])",
    re.IGNORECASE,
)
"""Words and signs that make an option's text, which stands here as a zero character, another one: no cat, cat-like."""
_BOUND = re.compile(
    r"\b(?:(?:more|less|fewer|greater|larger|smaller|higher|lower)\s+than|at\s+(?:least|most)|or\s+(?:more|less|fewer)|up\s+to"
    r"|over|under|above|below|between|exceed(?:s|ing)?|half|twice|double|minus|times|plus)\b|[<>≤≥]|以上|以下|至少|至多|超过|不到",
    re.IGNORECASE,
)
_REASON = re.compile(r"\b(?:because|since|as|which|so\s+that|given\s+that)\b|因为|由于")
_CAUSE = re.compile(r"\b(?:because|since)\b|因为|由于")
_RELATIVE = re.compile(r"\b(?:that|which|who|whose|where|when)\b", re.IGNORECASE)
_OPENS_WITH_SPEAKER = re.compile(r"\s*(?:it|i|we|there|this|nobody|no\s+one)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?。！？;；])\s+|(?<=[。！？])|\n+")
_RETRACTED = re.compile(
    r"[\s)）\]*\"'”.,;:!]*(?:(?:oh|sorry)\W+)?(?:no|wait|actually|however|but)\b[^.]{0,60}"
    r"|[\s)）\]*\"'”.,;:!]*(?:that|this|it)(?:['’]s|\s+is|\s+was)\s+(?:not|wrong|incorrect|false)\b",
    re.IGNORECASE,
)


def stated(text: str, options: OptionSet) -> str | None:
    """Return the key that a text states, None where it states none or several, or takes it back."""
    for pattern in (_LAST_LETTER, _LOWER_RIGHT):
        text = pattern.sub(lambda said: said[1] + said[2].upper() + said[3], text)
    sentences = _SENTENCE.split(text)
    for patterns in (_STATED, [_NAMED]):
        found = [(index, match) for index, one in enumerate(sentences) for match in _matches(patterns, one)]
        if found:
            return _agreed(found, sentences, options)
    truth = read_truth(text)
    said = [key for key, option in options.texts.items() if truth is not None and read_truth(option) is truth]
    keys = [*(options.key(match["key"]) or match["key"] for match in _BRACKETED.finditer(text)), *said]
    keys += mentioned_texts(text, options)
    key = only(keys)
    if key is None or (not said and doubtful(text, key, options)):
        return None
    own = options.texts.get(key, "")
    bare = normal(text).replace(normal(own), "\x00") if normal(own) else normal(text)
    if not said and _ALTERED.search(bare):
        return None
    if any(character.isdigit() for character in own) and _BOUND.search(normal(text).replace(normal(own), " ")):
        return None
    return options.key(key) if not {k for k in mentioned_keys(text, options) if k != key} or said else None


def doubtful(text: str, key: str, options: OptionSet) -> bool:
    """Tell whether a text denies or doubts, apart from the words of the option itself."""
    own = normal(options.texts.get(key, ""))
    text = text.casefold().replace(own, " ") if own else text
    return bool(_NEGATION.search(text) or _HEDGE.search(text))


def mentioned_keys(text: str, options: OptionSet) -> set[str]:
    """Return the capital letters that stand alone; the article A and the pronoun I only in brackets."""
    keys = set()
    for match in re.finditer(r"(?<![\w'.$\\^_-])([(\[（]?)([A-Z])([)\]）]?)(?![\w'^_=+])", text):
        word_follows = re.match(r"\s+[a-z]", text[match.end() : match.end() + 8]) is not None
        bracketed = bool(match[1]) and bool(match[3])
        if bracketed or match[2] not in "AI" or not word_follows:
            keys.add(options.key(match[2]))
    return letters_of(keys)


def mentioned_texts(text: str, options: OptionSet) -> set[str]:
    """Return the keys of options whose texts occur as whole words, but not inside a longer option that occurs."""
    text, keys = normal(text), set()
    needles: dict[str, list[str]] = {}
    for key, option in options.texts.items():
        needles.setdefault(normal(option), []).append(key)
    for needle in sorted(needles, key=len, reverse=True):
        is_letter = len(needle) == 1 and needle.isascii() and needle.isalpha()
        if not needle or is_letter or needle not in text or read_truth(needle) is not None:
            continue
        pattern = rf"(?<![\w.]){re.escape(needle)}(?!\w|\.\d)" if needle[0].isascii() else re.escape(needle)
        text, times = re.subn(pattern, "\x00", text)
        if times:
            keys.update(needles[needle])
    return keys


def _matches(patterns: list[re.Pattern[str]], sentence: str) -> Iterator[re.Match[str]]:
    for pattern in patterns:
        yield from pattern.finditer(sentence)


def _letter(match: re.Match[str]) -> str:
    return match["key"] or match.groupdict().get("key2") or ""


def _agreed(found: list[tuple[int, re.Match[str]]], sentences: list[str], options: OptionSet) -> str | None:
    letters = {_letter(match) for _, match in found[: _MAX_STATEMENTS + 1]}
    key = None if len(found) > _MAX_STATEMENTS else only([options.key(letter.upper()) for letter in letters])
    if key is None or any(_is_taken_back(sentences[index], match, key, options) for index, match in found):
        return None
    index, last = max(found, key=lambda one: (one[0], one[1].end()))
    rest = " ".join([_CAUSE.split(sentences[index][last.end() :], maxsplit=1)[0], *sentences[index + 1 :]])
    after = sentences[index + 1] if index + 1 < len(sentences) else ""
    if _RETRACTED.match(after) or (mentioned_keys(rest, options) | mentioned_texts(rest, options)) - {key}:
        return None
    return key


def _is_taken_back(sentence: str, match: re.Match[str], key: str, options: OptionSet) -> bool:
    """Tell whether the sentence of a statement denies or doubts it.

    A "not" of a relative clause before the verb (the figure that cannot be folded is (D)), of an earlier clause, or of
    the reason that follows denies nothing.
    """
    before = sentence[max(0, match.start() - _NEAR) : match.start()]
    after = _REASON.split(sentence[match.end() : match.end() + _NEAR], maxsplit=1)[0]
    clause = before.rpartition(",")[2]
    relative = _RELATIVE.search(clause)
    if relative and not _OPENS_WITH_SPEAKER.match(clause):
        clause = clause[: relative.start()]
    spoken = f"{clause} {match[0]} {after}"
    return bool(_MORE.match(sentence, match.end())) or doubtful(spoken, key, options) or bool(_HEDGE.search(before))
