"""Whether a text says yes or no: for `boolean`, and for options of `choice` that say no more than that."""

import re

_YES = r"yes|yeah|yep|true|correct|right"
_NO = r"nope|no|false|incorrect|wrong"
_SUBJECT = r"it|he|she|they|there|that|this|these|those|the|you|we|i"
# A noun behind the word makes it say another thing: "no idea", "right side", "true north".
_ENGLISH = re.compile(
    rf"(?:(?P<yes>{_YES})|(?P<no>{_NO}))(?![\w'’/])"
    rf"(?=\s*(?:$|[,.;:!()*\"”—–-]|(?:because|since|as|{_SUBJECT})\b|，|。))(?!\s*-\w)",
    re.IGNORECASE,
)
_CHINESE_YES, _CHINESE_NO = r"是的?|对的?|正确的?|真|没错|有", r"不是的?|不对|不正确|错误的?|错的?|否|假|没有|没|不"
_CHINESE_END = r"(?=\s*(?:$|[，,。.！!；;、()（）*]))"
_CHINESE = re.compile(rf"(?:(?P<no>{_CHINESE_NO})|(?P<yes>{_CHINESE_YES})){_CHINESE_END}")
_ANNOUNCED = re.compile(
    r"^(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is|:)\s*[:*\"']*\s*",
    re.IGNORECASE,
)
_SAID_LATER = re.compile(
    r"\b(?:(?P<yes>yes|true)|(?P<no>no|false))\b"
    r"|(?:[,;.!]|\b(?:that|it|this|which)(?:['’]s|\s(?:is|was))\s)\s*(?:(?P<right>right|correct)|(?P<wrong>wrong|incorrect))"
    r"\s*(?=[.!,;]|$)",
    re.IGNORECASE,
)
_CHINESE_LATER = re.compile(rf"[，,。；;！!]\s*(?:(?P<no>{_CHINESE_NO})|(?P<yes>{_CHINESE_YES})){_CHINESE_END}")
_VERB = r"(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would|should)"
_RESTATED = rf"[\s,.;:!—–-]*(?:{_SUBJECT})\b(?:\s+\w+)?\s+"
_TAKEN_BACK = re.compile(rf"{_RESTATED}(?:{_VERB}(?:\s+not\b|n['’]t\b)|cannot\b)", re.IGNORECASE)
_AFFIRMED = re.compile(rf"[\s,.;:!—–-]*(?:{_SUBJECT})\s+{_VERB}\s*[.!]*\s*$", re.IGNORECASE)
_OPENING = re.compile(
    r"\W*(?:it|he|she|they|there|that|this|these|those|the|an?|in|on|at|both|all|because|since|as"
    r"|(?:i|we|you)\s+(?:can\s+)?(?:clearly\s+)?see)\b(?!-)",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"(?:\W|\b(?:yes|yeah|yep|true|correct|right|no|nope|false|incorrect|wrong|indeed|definitely|certainly|absolutely"
    r"|surely|clearly|obviously|exactly|of\s+course|please|sir|madam|thanks|thank\s+you|final|answer|option)\b)*",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"\b(?:not|no|none|never|cannot|nothing|nobody|nowhere|neither|nor|nope|without|zero|hardly|barely|impossible|unlikely"
    r"|untrue|wrong|incorrect|false|lacks?|lacking|absent|missing|fails?|failed|opposite|contrary|excluded|fake)\b"
    r"|n['’]t\b|(?<!没)[不非无未](?!错)|没(?![错问])|¬|❌|✗|✘",
    re.IGNORECASE,
)
_UNSURE = re.compile(
    r"\b(?:maybe|perhaps|might|could|possibly|otherwise|unless|if|unsure|doubt\w*|l(?:ie|ies|ied|ying)|jok(?:e|es|ing)"
    r"|kidding|sarcas\w+|pretend\w*)\b|[?？]|可能|也许|骗|玩笑",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=\w)\s*[.!;\n。！；]")
_SHORT = 12  # words; of a longer text, the first sentence can take the word back
_EDGES = " \t\n.,!*\"'。！\\${}()"


def read_truth(text: str) -> bool | None:
    """Return True for yes, False for no (or a word for it), None where a text says neither, or both.

    The word stands first and alone, or a restating clause follows it: "No, it is not", but not "no idea" and "yes, it
    is not".
    """
    text = _ANNOUNCED.sub("", text.strip(_EDGES).removeprefix("text{").strip(_EDGES))
    if text in ("1", "0"):
        return text == "1"
    first = _ENGLISH.match(text) or _CHINESE.match(text)
    if first is None:
        return None
    verdict = first["yes"] is not None
    rest = text[first.end() :]
    said = {later["no"] is None and later["wrong"] is None for later in _SAID_LATER.finditer(rest)}
    said |= {later["yes"] is not None for later in _CHINESE_LATER.finditer(rest)}
    denied = _TAKEN_BACK.match(rest) if verdict else _AFFIRMED.match(rest)
    return verdict if said <= {verdict} and not denied and _is_kept(rest, verdict) else None


def _is_kept(rest: str, verdict: bool) -> bool:
    """Tell whether the words behind yes or no leave it standing.

    A clause that says more may hold no denial after yes, and no doubt; other words must be known to be harmless.
    """
    is_long = len(rest.split()) > _SHORT
    heard = _SENTENCE_END.split(rest, maxsplit=1)[0] if is_long else rest
    if _UNSURE.search(heard) or (verdict and _DENIAL.search(heard)):
        return False
    denies = not verdict and _DENIAL.search(rest) is not None
    in_chinese = re.search(r"[\u4e00-\u9fff]", rest) is not None
    return is_long or denies or in_chinese or _OPENING.match(rest) is not None or _HARMLESS.fullmatch(rest) is not None
