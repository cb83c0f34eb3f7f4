"""`choice` on answers as models give them: what picks an option, what picks none, what a reference may be."""

import pytest

from rewards.result import Claim, Unscorable
from rewards.verifiers.registry import UNDECIDED, decide_quickly, verify

NUMBERS = ["20", "22", "24", "26"]
ANIMALS = ["cat", "dog", "bird", "fish"]
TRUTHS = ["yes", "no"]


def value(answer, reference, options=None):
    return verify("choice", Claim(answer, answer, reference, {} if options is None else {"options": options}), {})


@pytest.mark.parametrize(
    ("answer", "reference", "options"),
    [
        ("N/A", "A", ANIMALS), ("n/A", "A", None), ("21°C", "C", NUMBERS), ("21 °C", "C", NUMBERS), ("5 C", "C", NUMBERS), ("70°F", "F", None),
        ("Washington, D.C.", "D", None), ("Washington, D.C.", "C", ANIMALS), ("9 A.M.", "A", ANIMALS), ("the U.S.A.", "A", None), ("C(n,2)", "C", ANIMALS),
        ("P(A) = 0.2", "A", NUMBERS), ("John F. Kennedy", "F", None), ("Malcolm X", "X", None), ("vitamin C", "C", ANIMALS), ("hepatitis B", "B", ANIMALS),
        ("Type A", "A", ANIMALS), ("5 A", "A", NUMBERS), ("10 kB", "B", NUMBERS), ("triangle ABC", "A", ANIMALS), ("angle B", "B", ANIMALS),
        ("The answer is N/A", "A", None), ("Answer: D.C.", "D", ANIMALS), ("The answer is C(n,2)", "C", None), ("Answer: A.M.", "A", None),
        ("B - 5", "B", NUMBERS), ("B = 5", "B", NUMBERS), ("A+", "A", ANIMALS), ("A^2", "A", NUMBERS), ("H_2", "H", None),
    ],
)  # fmt: skip
def test_a_capital_letter_inside_another_word_is_no_option(answer, reference, options):
    assert value(answer, reference, options) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "There is no answer in the image.", "no idea", "no solution", "No information is given", "I have no clue", "no one knows", "There is no way to tell",
        "none", "not no", "no or yes", "Yes and no", "unknown",
    ],
)  # fmt: skip
def test_a_refusal_is_not_the_option_no(answer):
    assert value(answer, "no", TRUTHS) == 0.0
    assert value(answer, "B", {"A": "Yes", "B": "No", "C": "Cannot be told"}) == 0.0


@pytest.mark.parametrize(
    "answer", ["no", "No.", "No, it is not.", "The answer is no", "(B) no", "B", "**No**", "B. No"]
)
def test_no_is_the_option_no(answer):
    assert value(answer, "no", TRUTHS) == 1.0
    assert value(answer, "yes", TRUTHS) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "\\lnot A", "\\neg A", "¬A", "\\bar{A}", "\\overline{A}", "\\cancel{(A)}", "A ❌", "(A) ✗", "anything but A", "anything but (A)", "all but (A)",
        "exclude A", "(A) is excluded", "other than (A)", "rather than (A)", "not (A)", "The answer is not (A)", "The answer isn't A.", "I do not think the answer is A.",
        "It is false that the answer is (A).", "I would never choose A", "If the answer is A, we are lost.", "Is the answer A?", "The answer might be A",
        "A is not correct", "The answer is A. Wait, that is wrong.", "The answer is (A). No, it is not.", "the answer cannot be (A)", "A不正确", "不选A", "选项A错误",
        "Neither (A) nor the others", "A or B", "A/B", "both A and B are correct", "The answer is A or B", "not a cat", "It is no cat but a dog", "cat or dog",
        "A. dog", "The answer is A, dog", "B",
    ],
)  # fmt: skip
def test_an_answer_that_denies_or_doubts_itself_picks_nothing(answer):
    assert value(answer, "A", ANIMALS) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "The cost would not change. The answer is (D).", "The shape that cannot be folded is (D).", "The one which does not belong is D.", "Since x is not 0, the answer is D.",
        "The two are related by both laws, and the only such figures are (D).", "Therefore, D is correct.", "Thus D is the correct answer.", "So, option (D) is right.",
        "A is incorrect, so the answer is D.", "The answer is D because it is not a cat", "It cannot be swum in a cage. Hence the correct option is **D**.",
        "选项D正确", "D选项", "正确答案为D项", "应该选D吧", "D是正确的", "答案：D", "选D", "因此选D。", "D项", "答案应该是D",
        "Option D", "\\text{(D)}", "D) fish", "(D) fish", "fish", "Fish.", "a fish", "The fish", "It is a fish", "Answer: **D**", "D.", "My answer is D", "The correct choice is: D",
        "\\boxed{D}", "$\\mathrm{D}$", "I would pick D.", "The final answer is (D) fish.", "We choose D.", "**D. fish**", "It must be D.",
    ],
)  # fmt: skip
def test_a_statement_picks_its_option(answer):
    assert value(answer, "D", ANIMALS) == 1.0
    for other in "ABC":
        assert value(answer, other, ANIMALS) == 0.0


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        ("\\sqrt{3}", ["√2", "√3", "2", "3"]), ("\\sqrt3", ["√2", "√3", "2", "3"]), ("√3", ["2", "$\\sqrt{3}$", "3", "4"]), ("2002^2", ["2002^{3}", "2002^{2}", "2002", "1"]),
        ("0.088 m²", ["0.88 m^2", ".088 m^2", "8.8 m^2"]), ("m^2", ["m³", "m²"]), ("\\frac{5\\pi}{3}+2", ["\\frac{5}{3}\\pi-2", "\\frac{5}{3}\\pi+2"]),
        ("1+x", ["1-x", "x+1"]), ("\\frac{\\sqrt{2}}{2}", ["\\sqrt{2}", "\\frac{1}{\\sqrt{2}}"]), ("2x(x+1)", ["2x^2+2", "2x^2+2x"]), ("AA", ["Aa", "AA", "aa"]),
        ("1/2", ["0.25", "0.5"]), ("x≥2", ["x \\le 2", "x \\ge 2"]), ("30°", ["60^\\circ", "30^\\circ"]), ("1,000", ["100", "1000"]), ("H₂O", ["CO_2", "H_2O"]),
        ("50 %", ["5%", "50\\%"]), ("90 degrees", ["45°", "90°"]),
    ],
)  # fmt: skip
def test_an_option_is_known_in_every_spelling_and_form(answer, options):
    assert value(answer, "B", options) == 1.0
    assert value(answer, "A", options) == 0.0
    assert decide_quickly("choice", Claim(answer, answer, "B", {"options": options}), {}) in (1.0, UNDECIDED)


@pytest.mark.parametrize(("answer", "expected"), [("Aa", "A"), ("AA", "B"), ("aa", "C"), ("(b)", "B"), ("aA", None)])
def test_case_counts_where_options_differ_by_nothing_else(answer, expected):
    for letter in "ABC":
        assert value(answer, letter, ["Aa", "AA", "aa"]) == float(letter == expected)


def test_a_lone_letter_is_an_options_letter_though_it_is_anothers_text():
    letters = {"A": "B", "B": "C", "C": "A"}
    assert [value(answer, "A", letters) for answer in ("A", "C", "B", "A. B", "(A) B", "A. C")] == [1, 0, 0, 1, 1, 0]
    assert [value(answer, "C", ["B", "A", "D", "C"]) for answer in ("C", "D", "The answer is C")] == [1, 0, 1]


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("A, B", ["A", "B"]), ("(A), (B)", ["A", "B"]), ("A;B", ["A", "B"]), ("A and B", "A, B"), ("AB", "AB"), ("B, A", "AB"), ("A、B", "A;B"), ("A & B", "A,B"),
        ("The answers are A and B", "A and B"), ("A B", "AB"), ("选项：AB", "AB"), ("(A) and (B)", "A,B"), ("A. B.", "AB"),
    ],
)  # fmt: skip
def test_several_right_options_in_one_text(answer, reference):
    assert value(answer.removeprefix("选项："), reference, ANIMALS) == 1.0
    for wrong in ("A", "B", "ABC", "A, C", "A or B", "A, B, C", "cat"):
        assert value(wrong, reference, ANIMALS) == 0.0


def test_options_of_the_same_text_are_one_option():
    for reference in ("A", "B", "5"):
        assert [value(answer, reference, ["5", "5", "6"]) for answer in ("A", "B", "5", "C", "6")] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("reference", ["E", "BA", "whale", float("nan"), "AE", "A or B"])
def test_a_reference_that_names_no_option_is_unscorable(reference):
    with pytest.raises(Unscorable):
        value("A", reference, ANIMALS)


REAL = [
    # As answers to MathVista, MMMU, AI2D and Chinese exams look.
    ("The correct answer is **(C) bird**.","C",["cat","dog","bird","fish"],1),
    ("C. bird","bird",["cat","dog","bird","fish"],1),
    ("bird","C",["cat","dog","bird","fish"],1),
    ("The animal shown is a bird, so the answer is C.","C",["cat","dog","bird","fish"],1),
    ("It is not a cat. It is a bird.","C",["cat","dog","bird","fish"],0),
    ("The answer is C: bird","C",["cat","dog","bird","fish"],1),
    ("**Answer:** C","C",["cat","dog","bird","fish"],1),
    ("Answer: (C)","C",None,1),
    ("C","C",None,1),("c","C",None,1),("(c)","C",None,1),("Option C","C",None,1),("choice C.","C",None,1),
    ("C is correct","C",None,1),("C is not correct","C",None,0),("The answer is not C","C",None,0),
    ("I think the answer is C","C",None,1),("It's C","C",None,0),("The answer: C","C",None,1),
    ("A or C","C",None,0),("A, C","C",None,0),("AC","C",None,0),("C?","C",None,0),("Not C","C",None,0),("C!","C",None,0),
    ("C++","C",None,0),("C#","C",None,0),("C4","C",None,0),("Ch","C",None,0),("CO2","C",None,0),("Carbon (C)","C",None,1),
    ("Figure C","C",None,0),("Line C is the longest, so the answer is B","C",None,0),("Line C is the longest, so the answer is B","B",None,1),
    ("The answer is B. Line C is shorter.","B",None,0),
    ("20","A",["20","22"],1),("20 cm","A",["20","22"],1),("20.0","A",["20 cm","22 cm"],1),("$20$","A",["20","22"],1),("22","A",["20","22"],0),
    ("A. 20","A",["20","22"],1),("A. 22","A",["20","22"],0),("A. 21","A",["20","22"],0),("B. 22 cm","B",["20","22"],1),
    ("x = 20","A",["20","22"],1),("about 20","A",["20","22"],1),("not 20","A",["20","22"],0),("between 20 and 22","A",["20","22"],0),("more than 20","A",["20","22"],0),("less than 22","B",["20","22"],0),
    ("at least 20","A",["20","22"],0),("20 or more","A",["20","22"],0),("20-22","A",["20","22"],0),
    ("Yes","A",["Yes","No"],1),("yes","A",["Yes","No"],1),("No","A",["Yes","No"],0),("Yes, it is.","A",["Yes","No"],1),
    ("True","A",["True","False"],1),("The statement is true","A",["True","False"],0),("False","B",["True","False"],1),
    ("none of the above","D",["1","2","3","none of the above"],1),("None of the above","D",["1","2","3","None of the above."],1),("The answer is none of the above","D",["1","2","3","none of the above"],1),
    ("D. none of the above","D",["1","2","3","none of the above"],1),("The answer is (D) none of the above","D",["1","2","3","none of the above"],1),("None","D",["1","2","3","none of the above"],0),
    ("cannot be determined","D",["1","2","3","cannot be determined"],1),("It cannot be determined","D",["1","2","3","cannot be determined"],1),("The answer is D, because it cannot be determined","D",["1","2","3","cannot be determined"],1),
    ("all of the above","C",["a cat","a dog","all of the above"],1),("both a cat and a dog","C",["a cat","a dog","both"],0),
    ("not a prime","B",["a prime","not a prime"],1),("a prime","A",["a prime","not a prime"],1),("not a prime","A",["a prime","not a prime"],0),("It is not a prime","B",["a prime","not a prime"],1),("It is not a prime","A",["a prime","not a prime"],0),
    ("unable to tell","A",["cat","dog"],0),("The answer is (A) or maybe (B)","A",["cat","dog"],0),
    ("increase","A",["increase","decrease"],1),("It will increase, not decrease","A",["increase","decrease"],0),("It does not increase","A",["increase","decrease"],0),("It would not decrease","B",["increase","decrease"],0),
    ("Washington","B",["New York","Washington"],1),("Washington DC","B",["New York","Washington"],1),("Washington, D.C.","B",["New York","Washington, D.C."],1),
    ("The capital is Washington, D.C.","D",["a","b","c","New York"],0),
    ("$\\frac{1}{2}$","A",["\\frac{1}{2}","2"],1),("0.5","A",["$\\frac{1}{2}$","2"],1),("\\dfrac12","A",["1/2","2"],1),("50%","A",["1/2","2"],1),
    ("\\boxed{\\text{(A)}}","A",["1/2","2"],1),("\\boxed{A}","A",["1/2","2"],1),("\\mathbf{A}","A",None,1),("\\textbf{A.}","A",None,1),("\\text{Option A}","A",None,1),
    ("A)","A",None,1),("[A]","A",None,1),("<A>","A",None,0),("{A}","A",None,0),("A,","A",None,1),("- A","A",None,0),("• A","A",None,0),
    ("answer is A","A",None,1),("Answer A","A",None,1),("answer=A","A",None,0),("Ans: A","A",None,0),("A. ","A",None,1),
    ("选A","A",None,1),("故选：A","A",None,1),("答案为A","A",None,1),("答案：A。","A",None,1),("答案是A和B","A",None,0),("应选A","A",None,1),("A对","A",None,1),("A错","A",None,0),("不是A","A",None,0),("A不对","A",None,0),("选择A或B","A",None,0),("故答案选A","A",None,1),("正确的是A","A",None,0),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "reference", "options", "right"), REAL)
def test_answers_as_models_give_them(answer, reference, options, right):
    assert value(answer, reference, options) == right
