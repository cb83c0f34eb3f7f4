"""The settings of `python -m model.chat`."""

import math
import re
from dataclasses import dataclass, field

from model.config import Device
from model.interface import Mode
from model.json_values import member


@dataclass
class ChatConfig:
    checkpoint: str = ""
    """folder of the model to talk to"""
    endpoint: str = ""
    """instead of a checkpoint: address of a server, such as http://127.0.0.1:8000/v1, which rlhf.serve starts"""
    api_key_env: str = ""
    """environment variable that holds the key of this server; empty: none is sent"""
    image: list[str] = field(default_factory=list)
    """image files that the first question is about, FILE or [FILE,FILE]; in a conversation a line `/image FILE` shows
    one more"""
    question: str = ""
    """ask this once and leave; empty: a conversation on the terminal, whose answers know what was said before"""
    device: Device = Device.auto
    """where to run: the GPU if there is one, in bfloat16, or what is named"""
    mode: Mode = Mode.think
    """think: the published instruction is appended to every question; direct: it is not; auto: ours, by which the model
    judges first whether to think (docs/sail-rl.md)"""
    temperature: float = 0.0
    """0: the most likely token each time"""
    max_completion_tokens: int = 1024
    """limit of an answer"""
    seed: int = 0
    """seed of the draws at a temperature above 0"""

    def __post_init__(self) -> None:
        self.device = member(Device, self.device, "device")
        self.mode = member(Mode, self.mode, "mode")
        if bool(self.checkpoint) == bool(self.endpoint):
            found = f"{self.checkpoint} and {self.endpoint}" if self.checkpoint else "nothing"
            raise ValueError(
                f"checkpoint: expected the folder of a model, or the address of a server as endpoint, found {found}"
            )
        if self.endpoint and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", self.endpoint):
            shown = "another form" if "@" in self.endpoint else repr(self.endpoint)
            raise ValueError(f"endpoint: expected an address such as http://127.0.0.1:8000/v1, found {shown}")
        if self.api_key_env and not self.endpoint:
            raise ValueError(f"api_key_env: expected an endpoint that is sent the key, found {self.checkpoint} instead")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: expected a number from 0 on, found {self.temperature}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected 0 to 2^63 - 1, found {self.seed}")
        if self.max_completion_tokens < 1:
            raise ValueError(f"max_completion_tokens: expected at least 1, found {self.max_completion_tokens}")
