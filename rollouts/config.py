"""Settings of the sampler."""

from dataclasses import dataclass, replace


@dataclass
class RolloutConfig:
    max_prompt_tokens: int = 96
    """longest prompt in tokens, visual ones included; also the fixed room of the prefix cache"""
    max_completion_tokens: int = 48
    """longest completion in tokens; a completion that reaches it is overlong"""
    temperature: float = 1.0
    """sampling temperature; the policy's log-probabilities use the same"""
    max_rows: int = 512
    """completions decoded side by side"""
    processes: int = 1
    """samplers of a model on CPU: 1 samples in the trainer's process with its threads; more are processes of one thread
    each (on Linux). A GPU has one sampler"""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_completion_tokens", "max_rows", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollouts.{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"rollouts.temperature: expected a positive number, found {self.temperature}; "
                "greedy decoding belongs to evaluation"
            )

    def check_length(self, prompt_id: str, length: int) -> None:
        """`ValueError` for a prompt of too many tokens."""
        if length > self.max_prompt_tokens:
            raise ValueError(
                f"prompt {prompt_id}: expected at most rollouts.max_prompt_tokens = {self.max_prompt_tokens} tokens, "
                f"found {length}"
            )

    def of_one_process(self) -> "RolloutConfig":
        """What each of several processes is started with."""
        return replace(self, processes=1, max_rows=-(-self.max_rows // self.processes))
