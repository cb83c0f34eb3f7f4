"""`math`: mathematical equality."""

from rewards.mathematics.answer import compare_plainly, refuse_long, verify_symbolic
from rewards.result import Claim
from rewards.verifiers.verifier import UNDECIDED, Options, Undecided, Verifier, reference_text


def judge_math(claim: Claim, options: Options) -> float:
    """Give 1 when the answer equals the reference as mathematics, else 0. Runs sympy, so only in a scorer process."""
    return float(verify_symbolic(claim.answer, reference_text(claim)))


def decide_math(claim: Claim, options: Options) -> float | Undecided:
    """Decide equal numbers and words; a missing answer only when the reference is known to be readable."""
    reference = reference_text(claim)
    refuse_long(claim.answer, reference)
    verdict = compare_plainly(claim.answer or "", reference)
    if verdict is None:
        return UNDECIDED
    return float(verdict and claim.answer is not None)


MATH = Verifier(
    judge_math,
    "1 when the answer equals the reference as mathematics, else 0",
    "the rules of Math-Verify 0.9 (huggingface/Math-Verify), its LaTeX grammar, sympy's arithmetic",
    quick=decide_math,
    needs_sympy=True,
)
