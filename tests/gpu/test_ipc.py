"""On a CUDA device: another process reads the weights where the trainer has them, after each update."""

import json
import pickle
import subprocess
import sys

import pytest
import torch

from rollouts.weights.senders import IpcSender
from rollouts.weights.sync import send, tensor_checksum

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
READER = """
import json, pickle, sys
from rollouts.weights.sync import tensor_checksum
tensor_handle = pickle.load(sys.stdin.buffer)
for _ in range(2):
    print(json.dumps({name: tensor_checksum(tensor) for name, tensor in tensor_handle.open()}), flush=True)
    sys.stdin.buffer.readline()
"""


def test_another_process_opens_them_and_sees_the_next_update():
    tensors = {
        "weight": torch.randn(300, 70, device="cuda"),
        "half": torch.randn(17, device="cuda").bfloat16(),
        "bias": torch.randn(5, device="cuda"),
    }
    sender = IpcSender(tensors, torch.device("cuda"))
    send(sender, 0, tensors.items(), on_host=False)
    sender.publish([])
    command = [sys.executable, "-c", READER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin and reader.stdout
        reader.stdin.write(pickle.dumps(sender.tensor_handle("reader")))
        reader.stdin.flush()
        for update in range(2):
            if update:
                for name, tensor in tensors.items():
                    sender.put(name, tensor.mul_(2))
                sender.publish(["reader"])
                reader.stdin.write(b"\n")
                reader.stdin.flush()
            wanted = {name: tensor_checksum(tensor.cpu()) for name, tensor in tensors.items()}
            assert json.loads(reader.stdout.readline()) == wanted
        reader.stdin.write(b"\n")
        reader.stdin.close()
        assert reader.wait(60) == 0
