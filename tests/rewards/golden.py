"""The golden set: claims with the verdict that follows from how each was built, for every verifier."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rewards.answers import AnswerRule, extract
from rewards.result import Claim
from tests.rewards.golden_mathematics import mathematics


@dataclass(frozen=True)
class Case:
    verifier: str
    family: str
    claim: Claim
    options: dict[str, Any]
    value: float | None


def golden_cases(seed: int = 7) -> list[Case]:
    rng = random.Random(seed)
    makers = (
        math_cases, numeric_cases, relaxed_cases, count_cases, choice_cases, boolean_cases, exact_cases, anls_cases,
        box_cases, point_cases, list_cases, json_cases, format_cases, overlong_cases, repetition_cases, language_cases,
        gsm8k_cases, dapo_cases, geo3k_cases, hacking_cases,
    )  # fmt: skip
    return [case for maker in makers for case in maker(rng)]


def say(rng: random.Random, answer: str) -> str:
    """A completion that boxes the answer, in one of the ways that models have."""
    thinking = rng.choice(["We try \\boxed{41}. No.", "Let me see.", "x = 3, y = 4", "是不是 12？"])
    return rng.choice(
        [
            f"<think>{thinking}</think>\\boxed{{{answer}}}",
            f"<think>{thinking}</think>\nThe answer is $\\boxed{{{answer}}}$.",
            f"So the result is \\boxed{{{answer}}}",
            f"First \\boxed{{0.123}}, then better: \\boxed{{{answer}}} is it.",
        ]
    )


def case(
    verifier: str, family: str, answer: str | None, reference: Any, value: float | bool | None, **more: Any
) -> Case:
    """A case whose answer is given as it stands."""
    claim = Claim(
        more.pop("completion", answer or ""), answer, reference, more.pop("columns", {}), more.pop("tokens", 0)
    )
    return Case(verifier, family, claim, more.pop("options", {}), None if value is None else float(value))


def math_cases(rng: random.Random) -> Iterator[Case]:
    for family, answer, reference, verdict in mathematics(rng):
        if answer.count("{") == answer.count("}") and "$$" not in answer:
            completion = say(rng, answer)
            yield case("math", family, extract(completion), reference, verdict, completion=completion)
        else:
            yield case("math", family, answer, reference, verdict)


def numeric_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(20):
        value = rng.randint(100, 99999) / 100
        yield case("numeric", "tolerance", f"{value:.2f}", value, True)
        yield case("numeric", "tolerance", f"{value * 1.009:.6f}", value, True, options={"relative": 0.01})
        yield case("numeric", "tolerance", f"{value * 1.02:.6f}", value, False, options={"relative": 0.01})
        yield case(
            "numeric", "tolerance", f"{value + 0.4:.4f}", value, True, options={"absolute": 0.5, "relative": 0.0}
        )
        yield case(
            "numeric", "tolerance", f"{value + 0.6:.4f}", value, False, options={"absolute": 0.5, "relative": 0.0}
        )
        yield case("numeric", "spelling", f"{value:,.2f} cm", f"{value:.2f}", True)
        yield case("numeric", "spelling", "about", value, False)
        yield case("numeric", "spelling", f"{value} or {value + 1}", value, False)


def relaxed_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(15):
        value = rng.randint(20, 5000)
        yield case("relaxed", "five percent", str(value), str(value), True)
        yield case("relaxed", "five percent", f"{value * 1.049:.4f}", str(value), True)
        yield case("relaxed", "five percent", f"{value * 0.951:.4f}", str(value), True)
        yield case("relaxed", "five percent", f"{value * 1.06:.4f}", str(value), False)
        yield case("relaxed", "percent", f"{value}%", f"{value / 100}", True)
        yield case("relaxed", "text", "Brazil", "brazil", True)
        yield case("relaxed", "text", "Brasil", "Brazil", False)
        yield case("relaxed", "several", f"{value}", [str(value * 3), str(value)], True)


def count_cases(rng: random.Random) -> Iterator[Case]:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    for n, word in enumerate(words):
        other = (n + 1) % len(words)
        yield case("count", "words", word, n, True)
        yield case("count", "words", f"There are {word} dogs.", str(n), True)
        yield case("count", "digits", f"{n}", n, True)
        yield case("count", "digits", f"{n} ({word}) birds", n, True)
        yield case("count", "digits", f"{other}", n, False)
        yield case("count", "hedged", f"{n} or {other}", n, False)
        yield case("count", "hedged", f"{n}.5", n, False)
        for calculation in (f"{n}^{n}", f"{n}^{{{n}^{{{n}}}}}", f"{n}+{n}", f"\\frac{{{n}}}{{{n}}}", f"{n}!"):
            yield case("count", "calculations", calculation, n, False)
    for larger, part in (("one hundred", 1), ("six thousand birds", 6), ("7k", 7), ("two dozen", 2), ("forty", 4)):
        yield case("count", "larger", larger, part, False)
    yield case("count", "chinese", "图中有三只猫", 3, True)
    yield case("count", "chinese", "图中有三只猫", 4, False)


def choice_cases(rng: random.Random) -> Iterator[Case]:
    pools = [["12 cm", "15 cm", "18 cm", "21 cm"], ["red", "dark red", "blue", "green"], ["a cat", "a dog", "a bird", "not sure"],
             ["x+1", "x-1", "2x", "x^2"], ["是", "不是", "可能", "以上都不对"]]  # fmt: skip
    for texts in pools:
        columns = {"options": texts}
        for index, text in enumerate(texts):
            key, other = "ABCD"[index], "ABCD"[(index + 1) % 4]
            right = [key, f"({key})", f"{key}.", f"{key}. {text}", f"({key}) {text}", text, f"\\text{{{key}}}", f"**{key}**", key.lower(),
                     f"The answer is {key}.", f"The answer is ({key}) {text}", f"Answer: {key}", f"答案是{key}", f"选{key}",
                     f"The correct option is {key}."]  # fmt: skip
            wrong = [other, f"({other})", f"{key} and {other}", f"{key} or {other}", "ABCD", "A, B, C, D", f"{key}. {texts[(index + 1) % 4]}",
                     f"The answer is {key}. No, the answer is {other}.", f"The answer is not {key}.", "", "E", "I do not know",
                     f"{' '.join('ABCD')}", f"either {key} or {other}"]  # fmt: skip
            for answer in right:
                yield case("choice", "right", answer, key, True, columns=columns)
            for answer in wrong:
                yield case("choice", "wrong", answer, key, False, columns=columns)
            yield case("choice", "by text", key, text, True, columns={"options": dict(zip("ABCD", texts, strict=True))})
    for key in "ABCD":
        yield case("choice", "no options", f"({key})", key, True)
        yield case("choice", "no options", "E", key, False)


def boolean_cases(rng: random.Random) -> Iterator[Case]:
    for yes, no in (
        ("Yes", "No"),
        ("yes.", "no."),
        ("True", "False"),
        ("是", "否"),
        ("对", "错"),
        ("Yes, it is.", "No, it is not."),
    ):
        for reference, right, wrong in (("yes", yes, no), ("no", no, yes), (True, yes, no), ("False", no, yes)):
            yield case("boolean", "plain", right, reference, True)
            yield case("boolean", "plain", wrong, reference, False)
            yield case("boolean", "announced", f"The answer is {right}", reference, True)
            yield case("boolean", "announced", f"So the final answer is: {wrong}", reference, False)
            yield case("boolean", "both", "yes and no", reference, False)
            yield case("boolean", "none", "perhaps", reference, False)


def exact_cases(rng: random.Random) -> Iterator[Case]:
    for text in ("Paris", "New York", "ISO 9001", "große Straße", "北京 大学", "x-ray", "Ａ1"):
        yield case("exact", "same", text, text, True)
        yield case("exact", "same", f"  {text.upper()} ", text, True)
        yield case("exact", "several", text, ["other", text], True)
        yield case("exact", "case", text.swapcase(), text, text.swapcase() == text, options={"case": "keep"})
        yield case("exact", "changed", text + "s", text, False)
        yield case("exact", "changed", text[:-1], text, False)
        yield case("exact", "changed", "", text, False)


def anls_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(20):
        length = rng.randint(6, 20)
        reference = "".join(rng.choice("abcdefghij") for _ in range(length))
        edits = rng.randint(1, length)
        answer = "#" * edits + reference[edits:]  # every '#' is one substitution, and none of them can match
        similarity = 1 - edits / length
        yield case("anls", "substitutions", answer, reference, similarity if similarity >= 0.5 else 0.0)
        yield case("anls", "several", reference.upper(), ["zzzz", reference], 1.0)
        yield case("anls", "deleted", reference[:-1], reference, 1 - 1 / length)
        yield case("anls", "padded", reference + "#" * (length + 2), reference, 0.0)


def box_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(15):
        left, top = rng.randint(0, 400), rng.randint(0, 400)
        side = rng.randint(100, 300)
        box = [left, top, left + side, top + side]
        half = [left, top, left + side, top + side // 2]
        value = (side // 2) / side
        text = ", ".join(map(str, box))
        for answer in (
            f"[{text}]",
            text,
            f"<box>({left},{top}),({left + side},{top + side})</box>",
            f'{{"bbox_2d": [{text}]}}',
        ):
            yield case("box_iou", "same", answer, box, 1.0)
        yield case("box_iou", "units", str([number / 1000 for number in box]), box, 1.0)
        yield case("box_iou", "half", str(half), box, value)
        yield case("box_iou", "threshold", str(half), box, value >= 0.4, options={"threshold": 0.4})
        yield case("box_iou", "apart", "[900, 900, 950, 950]", box, 0.0)
        yield case("box_iou", "malformed", f"[{text}, 5]", box, 0.0)
        yield case("box_iou", "malformed", str(box[::-1]), box, 0.0)
        yield case("box_iou", "outside", str([left, top, 1500, 1600]), box, 0.0)
        yield case("box_iou", "several", f"[{text}], [0, 0, 999, 999]", box, 0.0)


def point_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(15):
        left, top = rng.randint(0, 400), rng.randint(0, 400)
        box = [left, top, left + 200, top + 100]
        px, py = rng.randint(left, left + 200), rng.randint(top, top + 100)
        yield case("point_in_box", "inside", f"({px}, {py})", box, True)
        yield case("point_in_box", "inside", f'{{"point_2d": [{px}, {py}]}}', box, True)
        yield case("point_in_box", "units", f"[{px / 1000}, {py / 1000}]", box, True)
        yield case("point_in_box", "outside", f"({left + 201}, {py})", box, False)
        yield case("point_in_box", "outside", f"({px}, {top + 101})", box, False)
        yield case("point_in_box", "malformed", str(box), box, False)


def list_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(15):
        items = rng.sample(["cat", "dog", "bird", "7", "12", "sun", "red", "tree"], 4)
        swapped = [items[1], items[0], *items[2:]]
        for answer in (
            ", ".join(items),
            str(items).replace("'", '"'),
            " > ".join(items),
            "\n".join(f"{i}. {one}" for i, one in enumerate(items, 1)),
        ):
            yield case("ordered_list", "same", answer, items, True)
        yield case("ordered_list", "swapped", ", ".join(swapped), items, False)
        yield case("ordered_list", "share", ", ".join(swapped), items, 0.5, options={"score": "share"})
        yield case("ordered_list", "short", ", ".join(items[:3]), items, False)
        yield case("ordered_list", "long", ", ".join([*items, "x"]), items, False)


def json_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(12):
        total, tax = rng.randint(10, 999), rng.randint(1, 9)
        reference = {"total": total, "tax": tax, "shop": "Corner Shop", "items": ["a", "b"]}
        good = f'{{"shop": "corner  shop", "tax": {tax}, "items": ["a", "b"], "total": {total}.0}}'
        yield case("json_fields", "same", good, reference, 1.0)
        yield case("json_fields", "fenced", f"```json\n{good}\n```", reference, 1.0)
        yield case("json_fields", "one wrong", good.replace(f'"tax": {tax}', f'"tax": {tax + 1}'), reference, 0.75)
        yield case(
            "json_fields",
            "one wrong",
            good.replace('["a", "b"]', '["b", "a"]'),
            reference,
            0.0,
            options={"score": "exact"},
        )
        yield case(
            "json_fields", "extra", good.replace("{", '{"x": 1, ', 1), reference, 0.0, options={"extra": "wrong"}
        )
        yield case("json_fields", "twice", good.replace("{", '{"tax": 0, ', 1), reference, 0.0)
        yield case("json_fields", "no object", "total is 5", reference, 0.0)


def format_cases(rng: random.Random) -> Iterator[Case]:
    for answer in ("7", "\\frac{1}{2}", "\\text{B}", "\\{1\\}"):
        good = f"<think>because</think>\n\\boxed{{{answer}}}"
        bad = [f"\\boxed{{{answer}}}", good + " so", "x" + good, good * 2, good.replace("because", " "), good.replace("</think>", ""),
               f"<think>a</think>{answer}", good[:-1], good + f"\\boxed{{{answer}}}"]  # fmt: skip
        yield case("format", "strict", None, "", True, completion=good)
        for completion in bad:
            yield case("format", "strict", None, "", False, completion=completion)


def overlong_cases(rng: random.Random) -> Iterator[Case]:
    options = {"max_tokens": 1000, "cache_tokens": 200}
    for tokens, value in (
        (0, 0.0),
        (799, 0.0),
        (800, 0.0),
        (850, -0.25),
        (900, -0.5),
        (999, -0.995),
        (1000, -1.0),
        (5000, -1.0),
    ):
        yield case("overlong", "line", None, "", value, tokens=tokens, options=options)


def repetition_cases(rng: random.Random) -> Iterator[Case]:
    for size in (1, 2, 3):
        letters = " ".join("abcdefghijklmnopqrstuvwxyz")
        yield case("repetition", "none", None, "", 0.0, completion=letters, options={"ngram": size})
        yield case(
            "repetition", "all", None, "", -(1 - 1 / (30 - size + 1)), completion="ha " * 30, options={"ngram": size}
        )
        yield case("repetition", "short", None, "", 0.0, completion="one", options={"ngram": size + 1})
    yield case("repetition", "chinese", None, "", -0.75, completion="好好好好", options={"ngram": 1})


def language_cases(rng: random.Random) -> Iterator[Case]:
    english, chinese = (
        "The triangle has three equal sides and angles",
        "三角形有三条相等的边和三个相等的角所以它是等边的",
    )
    yield case("language", "pure", None, "", 1.0, completion=english)
    yield case("language", "pure", None, "", 0.0, completion=english, options={"script": "han"})
    yield case("language", "pure", None, "", 1.0, completion=chinese, options={"script": "han"})
    yield case("language", "short", None, "", None, completion="Yes.")
    yield case(
        "language", "formula", None, "", 1.0, completion=chinese + "$\\frac{abc}{def}$", options={"script": "han"}
    )
    yield case("language", "mixed", None, "", 0.5, completion="abcdefghij" + "三" * 10)
    yield case("language", "threshold", None, "", 0.0, completion="abcdefghij" + "三" * 10, options={"threshold": 0.9})


def gsm8k_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(10):
        n = rng.randint(1000, 99999)
        yield case("gsm8k", "strict", None, str(n), True, completion=f"So we get\n#### {n:,}")
        yield case("gsm8k", "strict", None, str(n), False, completion=f"So we get {n}")
        yield case("gsm8k", "strict", None, str(n), False, completion=f"#### {n}\n#### {n + 1}")
        yield case("gsm8k", "strict", None, str(n), False, completion=f"#### {n}" + " " * 300)
        yield case("gsm8k", "flexible", None, str(n), True, completion=f"7 then {n}", options={"method": "flexible"})
        yield case("gsm8k", "flexible", None, str(n), False, completion=f"{n} then 7", options={"method": "flexible"})
        yield case("gsm8k", "form", None, str(n), 0.1, completion=f"#### {n + 1}", options={"format_score": 0.1})


def dapo_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(10):
        n = rng.randint(1000, 99999)
        yield case("math_dapo", "plain", None, str(n), 1, completion=f"thus\nAnswer: {n}")
        yield case("math_dapo", "plain", None, str(n), 1, completion=f"Answer: ${n:,}$")
        yield case("math_dapo", "plain", None, str(n), 1, completion=f"answer : x = {n} cm")
        yield case("math_dapo", "plain", None, str(n), -1, completion=f"Answer: {n}.0")
        yield case("math_dapo", "fallback", None, str(n), 1, completion=f"so \\boxed{{{n}}}")
        yield case("math_dapo", "fallback", None, str(n), -1, completion=f"Answer: {n + 1}, \\boxed{{{n}}}")
        yield case(
            "math_dapo", "fallback", None, str(n), -1, completion=f"\\boxed{{{n}}}", options={"method": "answer_only"}
        )
        yield case(
            "math_dapo",
            "strict",
            None,
            str(n),
            1,
            completion=f"Answer: 1 \\boxed{{{n}}}",
            options={"method": "strict_box"},
        )
        yield case("math_dapo", "strict", None, str(n), -1, completion=f"Answer: {n}", options={"method": "strict_box"})
        yield case("math_dapo", "tail", None, str(n), -1, completion=f"Answer: {n}\n" + "x" * 300)
    yield case("math_dapo", "latex", None, "\\frac{1}{2}", 1, completion="Answer: \\frac12")
    yield case("math_dapo", "latex", None, "0.5", -1, completion="Answer: \\frac12")


def geo3k_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(10):
        n = rng.randint(2, 99)
        yield case("geo3k", "both", None, str(n), 1.0, completion=f"<think>a</think> so \\boxed{{{n}}} cm")
        yield case("geo3k", "no form", None, str(n), 0.9, completion=f"so \\boxed{{{n}}}")
        yield case("geo3k", "wrong", None, str(n), 0.1, completion=f"<think>a</think>\\boxed{{{n + 1}}}")
        yield case("geo3k", "neither", None, str(n), 0.0, completion=f"so {n}")


def hacking_cases(rng: random.Random) -> Iterator[Case]:
    """Completions that must earn nothing from `math`, whatever they contain."""
    everything = ",".join(map(str, range(100)))
    rules = [tuple(AnswerRule)[:1], (AnswerRule.answer_tag,), (AnswerRule.answer_line,)]
    for n in rng.sample(range(2, 90), 8):
        for completion in (
            "", " ", f"<think>\\boxed{{{n}}}</think>", f"<think>\\boxed{{{n}}}", f"\\boxed{{{n}", f"\\boxed{{{n}}}\\boxed{{{n + 1}}}",
            f"\\boxed{{{everything}}}", f"\\boxed{{{n} \\text{{ or }} {n + 1}}}", "\\boxed{}", "\\boxed{\\text{correct}}",
            f"\\boxed{{x}} where x is {n}", "\\boxed{\\infty}", f"\\boxed{{{n}}} </think>", f"\\boxed{{{'9' * 400}}}",
            f"\\boxed{{{n - 1}–{n + 1}}}", f"\\boxed{{x \\ge {n}}}", f"\\boxed{{[{n - 1}, {n + 1}]}}",
        ):  # fmt: skip
            for rule in rules:
                yield case("math", "hacking", extract(completion, rule), str(n), False, completion=completion)
