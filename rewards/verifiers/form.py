"""Verifiers of form, not of truth: `format`, `overlong`, `repetition`, `language`. They look at no reference."""

import re
import unicodedata
from itertools import islice

from rewards.answers import parse_completion
from rewards.result import Claim
from rewards.sections import parse_sections
from rewards.verifiers.verifier import Option, Options, Verifier

_WORD = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]|[^\W_]+|[^\w\s]")
_NOT_PROSE = re.compile(r"\$[^$]*\$|\\[a-zA-Z]+|</?[a-z]+>|https?://\S+|[a-zA-Z]?\d\S*")
_SCRIPTS = {
    "latin": ("LATIN",),
    "han": ("CJK",),
    "japanese": ("CJK", "HIRAGANA", "KATAKANA"),
    "hangul": ("HANGUL",),
    "cyrillic": ("CYRILLIC",),
    "arabic": ("ARABIC",),
    "devanagari": ("DEVANAGARI",),
    "greek": ("GREEK",),
    "hebrew": ("HEBREW",),
    "thai": ("THAI",),
}


def judge_format(claim: Claim, options: Options) -> float:
    """Judge the form that the prompt asked for."""
    if claim.mode == "auto":
        return float(parse_sections(claim.completion).well_formed)
    return float(parse_completion(claim.completion).well_formed)


def judge_overlong(claim: Claim, options: Options) -> float:
    """Give 0 up to max_tokens - cache_tokens, from there a straight line to -1 at max_tokens."""
    start = options["max_tokens"] - options["cache_tokens"]
    over = claim.num_tokens - start
    if over <= 0:
        return 0.0
    return -1.0 if claim.num_tokens >= options["max_tokens"] else -over / options["cache_tokens"]


def judge_repetition(claim: Claim, options: Options) -> float:
    """Give -(1 - distinct n-grams / n-grams) of the whole completion, and 0 when it is shorter than one n-gram."""
    words = _WORD.findall(claim.completion.lower())
    size = int(options["ngram"])
    total = len(words) - size + 1
    if total <= 0:
        return 0.0
    distinct = len(set(zip(*(islice(words, start, None) for start in range(size)), strict=False)))
    return -(1.0 - distinct / total)


def judge_language(claim: Claim, options: Options) -> float | None:
    """Give the share of the letters that belong to the script; formulas, commands, tags and links do not count."""
    letters = [character for character in _NOT_PROSE.sub(" ", claim.completion) if character.isalpha()]
    if len(letters) < options["min_letters"]:
        return None
    prefixes = _SCRIPTS[options["script"]]
    known: dict[str, bool] = {}
    for character in set(letters):
        known[character] = unicodedata.name(character, "").startswith(prefixes)
    share = sum(known[character] for character in letters) / len(letters)
    return float(share >= options["threshold"]) if options["threshold"] > 0 else share


FORMAT = Verifier(
    judge_format,
    "1 for exactly one think block (in mode auto: a judge section, and a think block exactly where it says so), then "
    "one boxed answer, then nothing, else 0",
    "the format reward of SAIL-VL2's thinking stage and DeepSeek-R1, strict",
)
OVERLONG = Verifier(
    judge_overlong,
    "0 for short completions, falling to -1 at the token limit",
    "soft overlong punishment, DAPO (Yu et al. 2025), equation 13",
    {
        "max_tokens": Option(16384, "L_max: longest completion", at_least=1, whole=True),
        "cache_tokens": Option(
            4096, "L_cache: length of the falling part", at_least=1, at_most="max_tokens", whole=True
        ),
    },
)
REPETITION = Verifier(
    judge_repetition,
    "minus the share of n-grams that are repeats",
    "repetition penalty of Yeo et al. 2025 (Demystifying Long Chain-of-Thought), as in open-r1; Chinese by character",
    {"ngram": Option(20, "length of an n-gram in words", at_least=1, whole=True)},
)
LANGUAGE = Verifier(
    judge_language,
    "share of letters in the expected script; not applicable to too little text",
    "language consistency reward of DeepSeek-R1 (share of words in the target language), by script",
    {
        "script": Option("latin", "the script expected", tuple(_SCRIPTS)),
        "min_letters": Option(20, "with fewer letters it does not apply", at_least=1, whole=True),
        "threshold": Option(0.0, "0: the share itself; above: 1 from this share on, else 0", at_least=0.0, at_most=1.0),
    },
)
