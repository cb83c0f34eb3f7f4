"""On a CUDA device: the packed kernel equals the portable reference, and the whole model runs there.

`python -m pytest -m gpu`. Not run by CI, which has no GPU.
"""

import pytest
import torch

from model.batch import Row, TrainBatch, move_batch, pack_rows
from model.checkpoint import build_flavour
from model.config import AttentionKernel, Flavour, flavour_config
from model.decoding.decoder import PromptDecoder
from model.decoding.graph import DecodeGraph
from model.engine.config import EngineConfig, OptimizerConfig, Schedule
from model.engine.local import LocalEngine
from model.kernels.attention import fastest
from model.kernels.varlen_attention import VarlenPlan, varlen_attention
from model.sail_vl2 import SailVL2
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import RolloutRequest, generate
from rollouts.weights.sync import fill_worker
from tests.model.kernels.test_split_attention import ROWS, dense, layout_of

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
    model.zero_grad()
    device = next(model.parameters()).device
    scores = model(pack_rows(rows, PLACEHOLDER, PIXELS_PER_TOKEN).to(device), attention=kernel)
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
    layout = pack_rows(rows, PLACEHOLDER, PIXELS_PER_TOKEN).layout
    assert fastest(torch.device("cuda"), torch.float32, 32, layout) is AttentionKernel.flex
    for kernel in (AttentionKernel.flex, AttentionKernel.sdpa):
        found = logprobs_and_gradients(model, kernel, rows)
        assert found.keys() == reference.keys()
        for name, tensor in reference.items():
            assert (found[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max(), (kernel, name)


def test_bfloat16_runs_forward_and_backward_on_all_kernels():
    """bfloat16 keeps 8 bits: log-probs of two kernels differ by a few roundings of 2^-8 relative."""
    model = SailVL2(flavour_config(Flavour.tiny))
    model.initialise(5)
    model.bfloat16().cuda()
    rows = make_rows(2)
    varlen, flex, sdpa = (
        logprobs_and_gradients(model, kernel, rows)
        for kernel in (AttentionKernel.varlen, AttentionKernel.flex, AttentionKernel.sdpa)
    )
    for found in (varlen, flex):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
        assert (found["ln p"] - sdpa["ln p"]).abs().mean() <= 2**-5 * sdpa["ln p"].abs().mean()


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2**-9), (torch.bfloat16, 2**-6)])
def test_flash_kernels_of_sequences_of_any_length(rows, dtype, tolerance):
    """Against the definition in float64: inputs, weights, parts and results are rounded to 11 or 8 bits each."""
    layout = layout_of(*rows)
    assert fastest(torch.device("cuda"), dtype, 40, layout) is AttentionKernel.varlen
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(layout.spans[-1].end, heads, 40, generator=generator).to(dtype) for heads in (6, 2, 2, 6)]
    plan = VarlenPlan(move_batch(layout, torch.device("cuda")))
    found = []
    for attend, device, precision in (
        (lambda q, k, v: dense(q, k, v, rows), "cpu", torch.float64),
        (lambda q, k, v: varlen_attention(q, k, v, plan), "cuda", dtype),
    ):
        *leaves, weights = (x.to(device, precision) for x in given)
        leaves = [x.requires_grad_() for x in leaves]
        out = attend(*leaves)
        found.append([x.double().cpu() for x in (out.detach(), *torch.autograd.grad((out * weights).sum(), leaves))])
    for expected, got in zip(*found, strict=True):
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def test_log_probs_do_not_depend_on_whether_gradients_are_wanted():
    """Old log-probs are made without, new ones with them: the first ratio is exactly 1."""
    model = SailVL2(flavour_config(Flavour.tiny))
    model.initialise(5)
    engine = LocalEngine(model, EngineConfig(), OptimizerConfig(learning_rate=1e-3), 10)
    inputs, found = pack_rows(make_rows(3), PLACEHOLDER, PIXELS_PER_TOKEN), []
    old = engine.logprobs([inputs])[0].logprobs

    def loss(scores, batch):
        found.append(scores.logprobs.detach())
        return scores.logprobs.sum(), {}

    engine.accumulate([TrainBatch(inputs, torch.ones(len(inputs.target_ids)))], loss, 1.0)
    assert torch.equal(found[0], old)


def test_a_sampler_that_runs_ahead_draws_what_one_that_waits_does():
    """Recorded steps, kernels, rows that leave and prompts that move in, against single launches in turn; float32."""
    torch.set_float32_matmul_precision("highest")
    model, processor = build_flavour(Flavour.tiny, 0)
    with torch.no_grad():
        model.language_model.model.embed_tokens.weight[processor.tokenizer.end_id] *= 3.0
    model.cuda()
    limits, found = RolloutConfig(max_prompt_tokens=64, max_completion_tokens=150, max_rows=32), []
    requests = [RolloutRequest(n, str(n), [5 + n] * (9 + n), [5 + n] * (9 + n), [], 8) for n in range(12)]
    for runs_ahead in (True, False):
        worker = fill_worker(EmbeddedWorker(model, processor, limits, 1), model)
        assert worker._runs_ahead
        if not runs_ahead:
            worker._runs_ahead, worker._decode = False, worker._decoder.decode
        found.append([rollout for group in generate(worker, requests) for rollout in group])
    lengths = {len(rollout.completion_ids) for rollout in found[0]}
    assert 150 in lengths and min(lengths) < 75
    for ahead, waiting in zip(*found, strict=True):
        assert ahead.completion_ids == waiting.completion_ids
        assert torch.allclose(
            torch.tensor(ahead.rollout_logprobs), torch.tensor(waiting.rollout_logprobs), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("recorded", [False, True], ids=["launched", "graph"])
def test_cached_decoding_on_the_gpu_equals_the_full_forward(recorded):
    """Through several sizes of room, and with completions that leave: graphs are recorded anew each time."""
    torch.set_float32_matmul_precision("highest")
    model = SailVL2(flavour_config(Flavour.tiny))
    model.initialise(7)
    model.cuda()
    decoder = PromptDecoder(model)
    decode = DecodeGraph(decoder).decode if recorded else decoder.decode
    generator = torch.Generator().manual_seed(0)
    completions = torch.randint(0, 500, (4, 150), generator=generator)
    prompts = [[1, 2, 3], [4] * 40]
    inputs = pack_rows([Row(prompt, []) for prompt in prompts], PLACEHOLDER, PIXELS_PER_TOKEN).to(torch.device("cuda"))
    logits, cache = decoder.prefill(inputs, 2, 64)
    rows, found = [0, 1, 2, 3], torch.zeros(4, 150)
    for step in range(150):
        fed = completions[rows, step].cuda()
        found[rows, step] = logits.log_softmax(-1).gather(-1, fed[:, None]).squeeze(-1).cpu()
        if step == 50:  # one sibling of the first prompt and both of the second leave
            rows, fed = [1], fed[1:2]
            with torch.inference_mode():
                cache.keep(torch.tensor([1], device="cuda"))
        logits = decode(fed, [cache])
    pairs = [Row(prompts[n // 2], [completions[n].tolist()]) for n in range(4)]
    with torch.no_grad():
        full = (
            model(pack_rows(pairs, PLACEHOLDER, PIXELS_PER_TOKEN).to(torch.device("cuda"))).logprobs.view(4, 150).cpu()
        )
    assert torch.allclose(found[1], full[1], atol=1e-4)
    assert torch.allclose(found[:, :51], full[:, :51], atol=1e-4)


def test_weights_that_lie_side_by_side_decode_like_loose_ones():
    torch.set_float32_matmul_precision("highest")
    logits = []
    for loose in (False, True):
        model = SailVL2(flavour_config(Flavour.tiny))
        model.initialise(7)
        decoder = PromptDecoder(model.cuda())
        if loose:
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        row = pack_rows([Row([1, 2, 3], [])], PLACEHOLDER, PIXELS_PER_TOKEN).to(torch.device("cuda"))
        first, cache = decoder.prefill(row, 4, 32)
        logits.append(torch.cat((first, decoder.decode(torch.arange(4, device="cuda"), [cache]))))
    assert torch.allclose(*logits, atol=1e-4)


def test_the_engine_computes_in_bfloat16_and_keeps_float32():
    model = SailVL2(flavour_config(Flavour.tiny))
    model.initialise(5)
    optimizer = OptimizerConfig(learning_rate=1e-6, warmup_steps=0, schedule=Schedule.constant, weight_decay=0.0)
    engine = LocalEngine(model, EngineConfig(), optimizer, 10)
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    inputs = pack_rows(make_rows(3), PLACEHOLDER, PIXELS_PER_TOKEN)
    batch = TrainBatch(inputs, torch.ones(len(inputs.target_ids)))
    engine.accumulate([batch], lambda scores, b: (-(scores.logprobs * b.loss_weights).sum(), {}), 100.0)
    assert engine.step().applied
    assert engine.compute_model.dtype == torch.bfloat16 and engine.compute_model.device.type == "cuda"
    for name, parameter in engine.model.named_parameters():
        assert parameter.dtype == torch.float32
        moved = (parameter - before[name]).abs()
        assert 0 < moved.max() <= 1.1e-6, name
