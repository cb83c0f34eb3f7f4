"""Suggestions for a word on the command line that nothing is called by."""

import difflib
from collections.abc import Sequence

_SAME_ELSEWHERE = {
    "checkpoint": "base",
    "lr": "learning_rate",
    "max_new_tokens": "max_completion_tokens",
    "max_completion_length": "max_completion_tokens",
    "max_response_length": "max_completion_tokens",
    "max_prompt_length": "max_prompt_tokens",
    "num_generations": "group_size",
    "num_iterations": "passes",
    "ppo_epochs": "passes",
    "num_train_epochs": "epochs",
    "total_epochs": "epochs",
    "epsilon": "clip_low",
    "epsilon_high": "clip_high",
    "beta": "kl.coefficient",
    "output_dir": "run.dir",
    "default_local_dir": "run.dir",
    "model_name_or_path": "checkpoint",
    "reward_funcs": "reward.functions",
    "reward_weights": "reward.function_weights",
    "save_freq": "run.save_every",
    "save_steps": "run.save_every",
    "test_freq": "evaluation.every",
    "eval_steps": "evaluation.every",
    "train_files": "prompts",
    "ppo_mini_batch_size": "mini_batch_size",
    "train_batch_size": "groups_per_step",
}
"""Last part of a key of TRL, of verl or of another command -> the key that means the same, or its last parts."""


def nearest_choice(word: str, choices: Sequence[str]) -> str:
    """The choice that looks most like the word, or all of them."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(choices)}"


def nearest_key(key: str, known: Sequence[str]) -> str:
    """A key that is probably meant; else the keys of the section that was named; else the sections."""
    known = sorted({one[:end] for one in known for end in [*_dots(one), len(one)]})
    section, _, last = key.rpartition(".")
    inside = [one for one in known if section and one.startswith(f"{section}.")]
    if found := _probably(key, last, inside or known, 0.75 if inside else 0.6):
        return f"did you mean {found!r}?"
    if inside:
        names = sorted(one[len(section) + 1 :] for one in inside if one.count(".") == section.count(".") + 1)
        return f"{section} has {', '.join(names)}"
    return f"expected one of {', '.join(sorted({one.partition('.')[0] for one in known}))}; --help lists all"


def _dots(key: str) -> list[int]:
    return [place for place, letter in enumerate(key) if letter == "."]


def _probably(key: str, last: str, known: Sequence[str], cutoff: float) -> str:
    for name in (last, _SAME_ELSEWHERE.get(last, last)):
        if exact := [one for one in known if one == name or one.endswith(f".{name}")]:
            return min(exact, key=len)
    if close := difflib.get_close_matches(key, known, n=1, cutoff=0.75):
        return close[0]
    by_tail = {one.rpartition(".")[2]: one for one in known}
    close = difflib.get_close_matches(last, list(by_tail), n=1, cutoff=cutoff)
    return by_tail[close[0]] if close else ""
