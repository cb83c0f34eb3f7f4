"""On a CUDA device: the packed kernel equals the portable reference, and the whole model runs there.

`python -m pytest -m gpu`. Not run by CI, which has no GPU.
"""

import pytest
import torch

from model.attention import pick_kernel
from model.batch import Row, pack_rows
from model.config import AttentionKernel, Flavour, flavour_config
from model.sail_vl2 import SailVL2

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PLACEHOLDER, PIXELS_PER_TOKEN = 519, 16


def make_rows(seed: int) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 500, (count,), generator=generator).tolist()

    def image() -> torch.Tensor:
        return torch.randn(1, 3, 32, 32, generator=generator)

    return [
        Row([*ids(200), *[PLACEHOLDER] * 4, *ids(3)], [ids(130), ids(1), ids(300)], [image()]),
        Row([PLACEHOLDER] * 8 + ids(5), [ids(70)], [image(), image()]),
        Row(ids(40), [ids(9), ids(17)]),
    ]


def logprobs_and_gradients(model: SailVL2, kernel: AttentionKernel, rows: list[Row]) -> dict[str, torch.Tensor]:
    model.attention_kernel = kernel
    model.zero_grad()
    device = next(model.parameters()).device
    scores = model(pack_rows(rows, PLACEHOLDER, PIXELS_PER_TOKEN).to(device))
    scores.logprobs.sum().backward()
    gradients = {name: p.grad.float().cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"ln p": scores.logprobs.detach().float().cpu(), **gradients}


@pytest.mark.parametrize("flavour", [Flavour.tiny, Flavour.tiny_moe])
def test_flex_kernel_equals_sdpa_on_cpu_in_values_and_gradients(flavour):
    """float32 without TF32: sums of a few hundred terms in another order, 1e-4 of each tensor's scale."""
    torch.set_float32_matmul_precision("highest")
    model = SailVL2(flavour_config(flavour))
    model.initialise(5)
    rows = make_rows(1)
    reference = logprobs_and_gradients(model, AttentionKernel.sdpa, rows)
    model.cuda()
    assert pick_kernel(AttentionKernel.auto, torch.device("cuda"), 32, 300) is AttentionKernel.flex
    for kernel in (AttentionKernel.flex, AttentionKernel.sdpa):
        found = logprobs_and_gradients(model, kernel, rows)
        assert found.keys() == reference.keys()
        for name, tensor in reference.items():
            assert (found[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max(), (kernel, name)


def test_bfloat16_runs_forward_and_backward_on_both_kernels():
    """bfloat16 keeps 8 bits: log-probs of the two kernels differ by a few roundings of 2^-8 relative."""
    model = SailVL2(flavour_config(Flavour.tiny))
    model.initialise(5)
    model.bfloat16().cuda()
    rows = make_rows(2)
    flex, sdpa = (
        logprobs_and_gradients(model, kernel, rows) for kernel in (AttentionKernel.flex, AttentionKernel.sdpa)
    )
    assert all(bool(torch.isfinite(tensor).all()) for tensor in flex.values())
    assert (flex["ln p"] - sdpa["ln p"]).abs().mean() <= 2**-5 * sdpa["ln p"].abs().mean()


def test_cached_decoding_on_the_gpu_equals_the_full_forward():
    torch.set_float32_matmul_precision("highest")
    model = SailVL2(flavour_config(Flavour.tiny))
    model.initialise(7)
    model.cuda()
    completion = [5, 6, 7, 8]
    prompt = [1, 2, 3]
    inputs = pack_rows([Row(prompt, [])], PLACEHOLDER, PIXELS_PER_TOKEN).to(torch.device("cuda"))
    logits, cache = model.prefill(inputs, 2, 8, len(completion))
    found = []
    for step, token in enumerate(completion):
        found.append(logits[0, 0].log_softmax(-1)[token])
        logits = model.decode(torch.tensor([[token, token]], device="cuda"), step, cache)
    full = pack_rows([Row(prompt, [completion])], PLACEHOLDER, PIXELS_PER_TOKEN).to(torch.device("cuda"))
    assert torch.allclose(torch.stack(found), model(full).logprobs, atol=1e-4)
