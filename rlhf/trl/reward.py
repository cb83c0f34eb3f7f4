"""Our rewards for TRL: `GRPOTrainer(reward_funcs=trl_reward(config, processor), ...)`. Does not need TRL itself."""

from collections.abc import Sequence
from typing import Any

from model.interface import Mode
from model.processing.tokenizer import Tokenizer
from rewards.answers import parse_completion
from rewards.config import RewardConfig
from rewards.result import RewardInput
from rewards.rubric import Rubric
from rollouts.rollout import FinishReason

_REFERENCES = ("reference", "solution", "answer", "ground_truth", "label", "target")
_IDS = ("id", "prompt_id")
_TRLS_OWN = ("log_extra", "log_metric", "environments")
_PLAIN = (str, int, float, bool, list, tuple, dict, type(None))


class TrlReward:
    """Scores completions as TRL hands them over. It holds worker processes: `close()` it when training is over."""

    __name__ = "sailvl2_reward"  # TRL logs a function under its name

    def __init__(self, rubric: Rubric, tokenizer: Tokenizer, mode: Mode = Mode.think) -> None:
        self.rubric, self._tokenizer, self._mode = rubric, tokenizer, mode

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any = None,
        **columns: Sequence[Any],
    ) -> list[float | None]:
        """A reward for each completion, None for one that cannot be scored. The text is decoded from the ids."""
        if trainer_state is not None:
            self.rubric.step, self.rubric.max_steps = trainer_state.global_step, trainer_state.max_steps
        columns = {name: values for name, values in columns.items() if name not in _TRLS_OWN}
        reference = next((name for name in _REFERENCES if name in columns), None)
        if reference is None:
            raise ValueError(
                f"train_dataset: expected a column with right answers, one of {', '.join(_REFERENCES)}, found "
                f"{sorted(columns)}"
            )
        ids = _prompt_ids(prompts, columns)
        meta = {name: values for name, values in columns.items() if name not in ("images", "image")}
        inputs = []
        for i, tokens in enumerate(completion_ids):
            text = self._tokenizer.decode(tokens)
            parsed = parse_completion(text)
            inputs.append(
                RewardInput(
                    prompt_id=ids[i],
                    messages=_plain_messages(prompts[i]),
                    images=_paths(columns, i),
                    reference=columns[reference][i],
                    completion=text,
                    thinking=parsed.thinking,
                    answer=parsed.answer,
                    token_ids=list(tokens),
                    finish_reason=finish_reason(tokens, self._tokenizer).value,
                    meta={name: values[i] for name, values in meta.items() if isinstance(values[i], _PLAIN)},
                    mode=self._mode.value,
                )
            )
        return [result.value for result in self.rubric.score(inputs)]

    def close(self) -> None:
        self.rubric.close()


def trl_reward(reward: RewardConfig | Rubric, processor: Any, mode: Mode | str = Mode.think) -> TrlReward:
    """A reward function for TRL's GRPOTrainer and RLOOTrainer.

    `processor`: the AutoProcessor of a SAIL-VL2 folder, or a `Processor` of `model.processing.processor`. `mode` is how
    prompts are asked, as the trainer's `chat_template_kwargs` say: {"thinking": True} for think, and
    {"thinking": "if_needed"} for auto. The data set needs a column `reference` (or solution, answer, ground_truth,
    label, target); `id`, `images` as paths and whatever verifiers and functions read are optional. Functions of the
    config are loaded now: `ValueError` if one cannot be.
    """
    rubric = reward if isinstance(reward, Rubric) else Rubric(reward)
    rubric.check_functions()
    return TrlReward(rubric, getattr(processor, "processor", processor).tokenizer, Mode.of(mode))


def finish_reason(completion_ids: Sequence[int], tokenizer: Tokenizer) -> FinishReason:
    """TRL keeps the end of turn of a completion, and cuts what came behind it."""
    ended = bool(completion_ids) and completion_ids[-1] == tokenizer.end_id
    return FinishReason.stop if ended else FinishReason.length


def _prompt_ids(prompts: Sequence[Any], columns: dict[str, Sequence[Any]]) -> list[str]:
    """Completions of one prompt stand together; without a column of ids neighbours with equal prompts are siblings."""
    for name in _IDS:
        if name in columns:
            return [str(value) for value in columns[name]]
    ids: list[str] = []
    number = 0
    for i, prompt in enumerate(prompts):
        number += i > 0 and prompt != prompts[i - 1]
        ids.append(f"prompt {number}")
    return ids


def _plain_messages(prompt: Any) -> list[dict[str, Any]]:
    """Messages as JSON data: opened images leave only their place."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [
        {
            **message,
            "content": [{k: v for k, v in part.items() if isinstance(v, _PLAIN)} for part in message["content"]],
        }
        if isinstance(message["content"], list)
        else message
        for message in prompt
    ]


def _paths(columns: dict[str, Sequence[Any]], index: int) -> list[str]:
    images = (
        columns["images"][index] if "images" in columns else [columns["image"][index]] if "image" in columns else []
    )
    return [image for image in images or [] if isinstance(image, str)]
