"""Texts on which careless patterns take long: pieces repeated, mixed and nested, as a policy may write them."""

import random
from collections.abc import Iterator

PIECES = [
    "(", ")", "[", "]", "{", "}", "\\{", "\\}", "\\", "\\\\", "`", "```", "```json", "\n", "\n\n", " ", "\t", "$", "$$", "\\(", "\\)", "1", "12", "0.", ".", ",",
    "1,", ", ", "1,000", "1 ", "1 1/2 ", "1/", "-", "--", "+", "=", "x=", "^", "^{", "_", "_{", "'", "''", "\\prime", "\\boxed{", "\\boxed{1}", "\\boxed 1 ", "\\text{",
    "\\text{a}", "\\text{ cm}", "\\frac{", "\\frac{1}{2}", "\\sqrt{", "\\left(", "\\right)", "answer is ", "Answer:", "the answer is A ", "answer to ", "final answer\n", "答案", "答案是", "选A", "是",
    "没有", "不", "三", "十", "个", "，", "。", "<think>", "</think>", "<answer>", "</answer>", "<", ">", "<box>", "</box>", "<|box_start|>", "a", "A", "A ", "A, ", "(A) ", "(A", "ab", "word ", "a" * 40,
    "not ", "no, ", "yes ", "is ", "the ", "there is ", "and ", "or ", "cm ", "5 cm ", "5 m/s ", "per ", "square ", "million ", "tenths ", "%", "\\%", "°", "^\\circ ", "€", "US$", "Rs. ",
    "\"", "'a', ", "['a', ", "\"a\": 1, ", "{\"a\":", "#### ", "#", "*", "**", "**A** ", ":", "1:", "10:30 ", "2021-05-03 ", "3 to ", "|", "&", "\\begin{array}", "\\end{array}", "\\pm", "\\in", "\\mid",
    "√", "²", "①", "é", "e\u0301", "\u200b", "\ufeff", "𝟙", "🙂", "Dr. ", "St. ", "U.S.", "F. K", ". A", "because ", "which is ", "1e5", "0x", "~", "\\,", "\\;", "!", "?", ";", "NaN", "\x00",
]  # fmt: skip
LENGTH = 10_000


def adversarial_texts(seed: int, count: int, length: int = LENGTH) -> Iterator[str]:
    """Yield texts of at most `length` characters; the first ones repeat each piece alone."""
    rng = random.Random(seed)
    for number in range(count):
        size = length if number < len(PIECES) else int(length ** rng.uniform(0.3, 1.0))
        pieces = [PIECES[number]] if number < len(PIECES) else rng.sample(PIECES, rng.randint(1, 4))
        yield _build(rng, pieces, size)[:size]


def _build(rng: random.Random, pieces: list[str], size: int) -> str:
    shape = rng.randrange(5)
    if len(pieces) == 1 or shape == 0:
        ends = rng.choice(["", "x", "}", "\\boxed{7}", "</think>7", "!"])
        unit = "".join(pieces)
        return unit * max(1, (size - len(ends)) // len(unit)) + ends
    if shape == 1:  # one after the other
        share = max(1, size // len(pieces))
        return "".join(piece * (share // len(piece) + 1) for piece in pieces)
    if shape == 2:  # a beginning, many of one piece, an end
        return pieces[0] + pieces[1] * (size // len(pieces[1])) + pieces[-1]
    if shape == 3:  # in any order
        return "".join(rng.choice(pieces) for _ in range(size // max(map(len, pieces)) + 1))
    middle = pieces[0] * (size // 2 // len(pieces[0]))
    return f"<think>{pieces[-1]}</think>\\boxed{{{middle}}}{pieces[1] * (size // 2 // len(pieces[1]))}"
