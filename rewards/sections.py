"""A completion of mode auto (SAIL-RL, arXiv 2511.02280), taken apart: judge section, thought and answer.

The judge section stands first and says whether the question requires reasoning: `<judge>{"requires_reasoning": true}
</judge>`. The form of its content is ours, because the paper's could not be read. A thought in think tags follows where
it says true, and the answer follows directly where it says false.
"""

from dataclasses import dataclass

from rewards.answers import JUDGE_END, JUDGE_START, THINK_END, THINK_START, behind_judgement, is_boxed_answer
from rewards.answers import parse_completion as parse_thought
from rewards.verifiers.verifier import parse_json

REQUIRES_REASONING = "requires_reasoning"
"""The key of a judge section, and the column of rows that say themselves whether they require reasoning."""

_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Sections:
    """The sections of a completion. `requires_reasoning` is None where it holds no decision that can be read."""

    judge: str | None  # content of the first judge section; None: there is none
    requires_reasoning: bool | None
    thinking: str  # text in the think tags, of a block that does not close too
    answer: str | None  # content of the last complete box behind them; None: there is none
    thought_closes: bool  # a think block that closes has text in it
    has_think_tags: bool  # behind the judge section
    well_formed: bool  # judge section, thought exactly where it is required, one boxed answer, then nothing

    @property
    def thought(self) -> bool:
        """Tell whether the completion thinks, to the end or not."""
        return bool(self.thinking.strip())

    @property
    def keeps_its_word(self) -> bool:
        """Tell whether the completion thinks exactly if its judge section says that the question requires it."""
        return self.requires_reasoning is not None and self.thought == self.requires_reasoning

    @property
    def obeys(self) -> bool:
        """Tell whether the completion does as mode auto asks: it decides, and has a thought or no think tag."""
        if self.requires_reasoning is None:
            return False
        return self.thought_closes if self.requires_reasoning else not self.has_think_tags


def parse_sections(text: str) -> Sections:
    """Take a completion of mode auto apart. Takes time linear in the length of the text."""
    judged, rest = behind_judgement(text)
    is_single = text.count(JUDGE_START) == 1 and text.count(JUDGE_END) == 1
    decision = _decision(judged[0]) if judged and is_single else None
    parsed = parse_thought(rest)
    is_formed = parsed.well_formed if decision else is_boxed_answer(rest)
    return Sections(
        judge=judged[0] if judged else None,
        requires_reasoning=decision,
        thinking=parsed.thinking,
        answer=parsed.answer,
        thought_closes=THINK_END in rest and bool(parsed.thinking.strip()),
        has_think_tags=THINK_START in rest or THINK_END in rest,
        well_formed=decision is not None and is_formed,
    )


def fact_of(value: object) -> bool | None:
    """Return what the value of a row's column says: a truth value, or its word, as tables without booleans have them.

    None where it says neither.
    """
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _decision(section: str) -> bool | None:
    """Return what a judge section says; None unless it is a JSON object that says true or false."""
    try:
        said = parse_json(section)
    except ValueError:
        return None
    decision = said.get(REQUIRES_REASONING) if isinstance(said, dict) else None
    return decision if isinstance(decision, bool) else None
