"""vLLM as a sampler: its engine in this process samples our prompts with our seeds, and takes weights by transfer."""

import hashlib
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import EngineArgs, SamplingParams, envs
from vllm.config import WeightTransferConfig
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from model.checkpoint import description_files
from model.engine.base import ModelShape
from model.processing.processor import Processor
from model.run.durable import write_file
from rollouts.config import Placement, Transfer, VllmRolloutConfig
from rollouts.intake import Intake, require_weights
from rollouts.probe import Probe, probe_inputs
from rollouts.randomness import sample_seed
from rollouts.rollout import MOMENT, NO_WEIGHTS, FinishReason, Proof, Rollout, RolloutRequest
from rollouts.routes import Routes
from rollouts.vllm_plugin import BACKEND, register
from rollouts.weights.handles import TensorHandle, WeightsLost
from rollouts.weights.senders import DirectSender, IpcSender, MemorySender, WeightSender
from rollouts.weights.sync import send
from rollouts.weights.template import ModelTemplate, template_tensors

_PREFILL_TOKENS = 32768
"""Tokens of a step on CPU, where a request with a seed must not be prefilled in pieces."""


_kept: list[Any] = []
"""Engines on the ranks of a trainer, which end with the process."""


@dataclass
class _Open:
    """A request that vLLM works on."""

    request: RolloutRequest
    deadline: float
    version: int
    waiting: set[int]  # numbers of the samples that are not complete
    done: dict[int, Rollout] = field(default_factory=dict)
    versions: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # sample -> (first token, policy version)
    prompt_routes: np.ndarray | None = None  # experts of the prompt's tokens, as the first complete sample took them


class VllmWorker:
    """`RolloutWorker` in front of a vLLM engine in this process. It has no weights until they are loaded.

    The same group index and sample give the same completion each time, but another one than our own sampler gives.
    Greedy completions have log-probabilities at temperature 1.
    """

    def __init__(
        self,
        template: ModelTemplate,
        processor: Processor,
        config: VllmRolloutConfig,
        run_seed: int,
        returns_routes: bool = False,
    ) -> None:
        """`returns_routes` says whether requests may ask for the experts of every token."""
        context = template.config.language.max_position_embeddings
        self.config = config = config.within(context)
        self.run_seed, self.version = run_seed, NO_WEIGHTS
        self._shape = ModelShape(template.config, template.dtype, template.device)
        self._end_id = processor.tokenizer.end_id
        dtype = str(template.dtype).removeprefix("torch.")
        register()
        self._on_gpu = template.device.type == "cuda" or sees_gpu()
        set_num_threads = torch.set_num_threads
        folder = _description_folder(description_files(template.config, processor, dtype))
        arguments = _engine_args(folder, dtype, config, context, self._on_gpu)
        self._returns_routes = returns_routes
        arguments.enable_return_routed_experts = returns_routes and self._on_gpu
        self._engine: Any = LLMEngine.from_engine_args(arguments)
        torch.set_num_threads = set_num_threads  # vLLM replaces it on CPU, for the whole process
        if returns_routes and not self._on_gpu:
            self._engine.collective_rpc("record_routes")
        self._intake = Intake(config)
        self._queue: dict[int, RolloutRequest] = {}
        self._open: dict[int, _Open] = {}
        self._is_asleep = False
        self._is_empty = False  # asleep, and without weights
        self._sender: WeightSender | None = None  # made by the first `load_weights`; a sampler of a pool has none

    @property
    def is_idle(self) -> bool:
        return not (self._queue or self._open)

    def submit(self, request: RolloutRequest) -> int:
        if request.returns_routes and not self._returns_routes:
            raise ValueError(
                f"prompt {request.prompt_id}: returns_routes: expected False, because this vLLM was started without "
                "routing replay, found True; give returns_routes=True to build_worker"
            )
        handle = self._intake.accept(request, self.version)
        self._queue[handle] = request
        return handle

    def poll(self) -> list[tuple[int, list[Rollout]]]:
        if not self.is_idle:
            require_weights(self.version)
        done: list[tuple[int, list[Rollout]]] = []
        end = time.monotonic() + MOMENT
        while not done and not self.is_idle and time.monotonic() < end:
            self._wake()
            self._start()
            done = self._step()
        self._rest()
        return done

    def abort(self, handle: int) -> None:
        self._queue.pop(handle, None)
        if opened := self._open.pop(handle, None):
            self._engine.abort_request([_request_id(handle, sample) for sample in opened.waiting])

    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> Proof:
        """Send weights to every process of vLLM. `RuntimeError` also names tensors with other bytes than were sent."""
        if self._sender is None:
            self._sender = _sender_of(self.config, self._shape)
        manifest = send(self._sender, version, tensors, on_host=isinstance(self._sender, MemorySender))
        self._sender.publish([self])
        try:
            return self.receive(version, self._sender.tensor_handle(self), manifest)
        finally:
            self._sender.settle()

    def receive(self, version: int, tensor_handle: TensorHandle, manifest: Mapping[str, int]) -> Proof:
        """See `rollouts.sampler.Sampler`. Each process of vLLM opens the handle; if one cannot, none loads anything."""
        begin = time.monotonic()
        if self._is_empty:
            self._engine.wake_up(tags=["weights"])  # the cache comes after the new weights, when their room is free
        else:
            self._wake()
        try:
            lost = [why for why in self._engine.collective_rpc("fetch_weights", args=(tensor_handle,)) if why]
            if lost:
                self._engine.collective_rpc("forget_weights")
                raise WeightsLost(lost[0])
            self.version = NO_WEIGHTS  # until every process has proven the new ones
            self._engine.collective_rpc("start_weight_update")
            update = {"version": version, "checksums": dict(manifest)}
            self._engine.collective_rpc("update_weights", args=(update,))
            self._engine.collective_rpc("finish_weight_update")
            if self._is_empty:
                self._engine.wake_up(tags=["kv_cache"])
                self._is_asleep = self._is_empty = False
            self._note_versions(version)
            return self._prove(version, manifest)
        finally:
            for opened in self._open.values():
                opened.deadline += time.monotonic() - begin
            self._rest()

    def release(self) -> bool:
        """See `rollouts.sampler.Sampler`. On a GPU vLLM drops its weights and its cache, on a CPU it keeps both.

        Not verified: it has not run on a GPU yet.
        """
        if self._on_gpu and self.config.sleeps:
            self._engine.sleep(level=2)
            self._is_asleep, self._is_empty, self.version = True, True, NO_WEIGHTS
        return False

    def probe(self, request: RolloutRequest) -> list[tuple[str, Probe]]:
        """See `RolloutWorker`. The ids are those that vLLM expands the prompt to. Weights that vLLM packs, as it does
        on CPU, cannot be looked at."""
        self._wake()
        prompt: dict[str, object] = {"prompt_token_ids": list(request.placeholder_ids)}
        if request.images:
            prompt["multi_modal_data"] = {"image": request.pixels}
        (rendered,) = self._engine.renderer.render_cmpl([prompt], skip_mm_cache=True)
        found = self._engine.collective_rpc("probe", args=(request.pixels,))[0]
        self._rest()
        return [("vLLM", {**probe_inputs(rendered["prompt_token_ids"], request.pixels), **found})]

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        if self._engine is not None:
            for handle in list(self._open):
                self.abort(handle)
            if self.config.pool.placement is Placement.ranks:
                _kept.append(self._engine)  # would end the trainer's process groups with its own
            else:
                self._engine.engine_core.shutdown()
            self._engine = None
        if self._sender is not None:
            self._sender.close()

    def _prove(self, version: int, manifest: Mapping[str, int]) -> Proof:
        """Prove what all processes of vLLM now hold, and drop everything that was computed with older weights."""
        proofs: list[tuple[int, dict[str, int]]] = self._engine.collective_rpc("weight_proof")
        wrong = [(rank, held) for rank, (held, _) in enumerate(proofs) if held != version]
        if wrong:
            raise RuntimeError(f"weight sync to policy version {version}: (rank, version) {wrong} of vLLM's processes")
        self.version = version
        if not self._open:  # otherwise the version in every key tells them apart
            self._engine.reset_prefix_cache()
            self._engine.reset_mm_cache()
            self._engine.reset_encoder_cache()
        return Proof.of_all(version, manifest, [sums for _, sums in proofs])

    def _start(self) -> None:
        """Hand queued requests to vLLM while it has free rows, as one request per sample with a seed of its own.

        The time limit of a group starts when it is handed over.
        """
        num_open = sum(len(opened.waiting) for opened in self._open.values())
        while self._queue and num_open < self.config.max_rows:
            handle = next(iter(self._queue))
            request = self._queue.pop(handle)
            num_open += request.group_size
            limit = self.config.deadline_s
            deadline = time.monotonic() + limit if limit else math.inf
            self._open[handle] = _Open(request, deadline, self.version, set(range(request.group_size)))
            prompt: dict[str, object] = {
                "prompt_token_ids": list(request.placeholder_ids),
                "cache_salt": str(self.version),  # so that keys and values of other weights are never used
            }
            if request.images:
                opened = request.pixels
                names = [f"{self.version}/{_digest(pixels)}" for pixels in opened]
                prompt |= {"multi_modal_data": {"image": opened}, "multi_modal_uuids": {"image": names}}
            (rendered,) = self._engine.renderer.render_cmpl([prompt])
            for sample in range(request.group_size):
                parameters = self._parameters(request, sample)
                self._engine.add_request(_request_id(handle, sample), dict(rendered), parameters)

    def _parameters(self, request: RolloutRequest, sample: int) -> SamplingParams:
        return SamplingParams(
            temperature=0.0 if request.greedy else self.config.temperature,
            max_tokens=self.config.max_completion_tokens,
            seed=sample_seed(self.run_seed, request.group_index, sample),
            logprobs=0,
            flat_logprobs=True,  # gives lists of numbers instead of a dictionary for each token
            stop_token_ids=[self._end_id],
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _step(self) -> list[tuple[int, list[Rollout]]]:
        """Sample one token of every completion and return the groups that are then complete."""
        finished: list[tuple[_Open, int, Any]] = []
        for output in self._engine.step():
            handle, sample = map(int, output.request_id.split("/"))
            if output.finished and handle in self._open:
                finished.append((self._open[handle], sample, output))
        for (opened, sample, output), routes in zip(finished, self._routes(finished), strict=True):
            self._finish(opened, sample, output, routes)
        now = time.monotonic()
        for handle, opened in self._open.items():
            if opened.waiting and now > opened.deadline:
                self._engine.abort_request([_request_id(handle, sample) for sample in opened.waiting])
                for sample in list(opened.waiting):
                    self._record(opened, sample, [], [], FinishReason.deadline)
        complete = [handle for handle, opened in self._open.items() if not opened.waiting]
        done = []
        for handle in complete:
            opened = self._open.pop(handle)
            done.append((handle, [opened.done[sample] for sample in range(opened.request.group_size)]))
        return done

    def _routes(self, finished: list[tuple[_Open, int, Any]]) -> list[np.ndarray | None]:
        """Return the experts [tokens, L, k] of all tokens but the last of requests that just finished, where asked."""
        if self._on_gpu:
            return [
                output.outputs[0].routed_experts if opened.request.returns_routes else None
                for opened, _, output in finished
            ]
        named = [
            (output.request_id, len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1)
            for opened, _, output in finished
            if opened.request.returns_routes
        ]
        found = iter(self._engine.collective_rpc("recorded_routes", args=(named,))[0] if named else ())
        return [next(found) if opened.request.returns_routes else None for opened, _, _ in finished]

    def _finish(self, opened: _Open, sample: int, output: Any, routes: np.ndarray | None) -> None:
        request, (completion,) = opened.request, output.outputs
        if list(output.prompt_token_ids) != list(request.prompt_ids):
            raise RuntimeError(
                f"prompt {request.prompt_id}: vLLM expanded it to other ids than the trainer:\n"
                f"  trainer {list(request.prompt_ids)}\n  vLLM    {list(output.prompt_token_ids)}"
            )
        ids, found = list(completion.token_ids), completion.logprobs
        logprobs = [
            found.logprobs[first] for first in found.start_indices
        ]  # the sampled token is the first of its place
        assert len(logprobs) == len(ids)
        finite = [math.isfinite(value) for value in logprobs]
        if not all(finite):
            end = finite.index(False) + 1
            self._record(opened, sample, ids[:end], [*logprobs[: end - 1], math.nan], FinishReason.error)
        else:
            self._record(opened, sample, ids, logprobs, FinishReason(completion.finish_reason), routes)

    def _record(
        self,
        opened: _Open,
        sample: int,
        ids: list[int],
        logprobs: list[float],
        reason: FinishReason,
        routes: np.ndarray | None = None,
    ) -> None:
        request, num_prompt = opened.request, len(opened.request.prompt_ids)
        if routes is not None and opened.prompt_routes is None:
            opened.prompt_routes = routes[:num_prompt].copy()
        opened.waiting.discard(sample)
        opened.done[sample] = Rollout(
            group_index=request.group_index,
            prompt_id=request.prompt_id,
            sample_index=sample,
            prompt_ids=request.prompt_ids,
            completion_ids=ids,
            completion_mask=[1] * len(ids),
            rollout_logprobs=logprobs,
            policy_versions=((0, opened.version), *opened.versions.get(sample, ())),
            finish_reason=reason,
            routes=Routes(opened.prompt_routes, routes[num_prompt:].copy())
            if routes is not None and opened.prompt_routes is not None
            else None,
        )

    def _note_versions(self, version: int) -> None:
        """Note for unfinished completions that their next tokens come from other weights."""
        states = {state.external_req_id: state for state in self._engine.output_processor.request_states.values()}
        for handle, opened in self._open.items():
            for sample in opened.waiting:
                state = states[_request_id(handle, sample)]
                count = state.detokenizer.num_output_tokens() if state.detokenizer else 0
                opened.versions.setdefault(sample, []).append((count, version))

    def _rest(self) -> None:
        """Leave a GPU's memory to a trainer that shares it, when idle. Not verified: it has not run on a GPU yet."""
        if self.is_idle and self._on_gpu and self.config.sleeps and not self._is_asleep:
            self._engine.sleep(level=1)
            self._is_asleep = True

    def _wake(self) -> None:
        if self._is_asleep:
            self._engine.wake_up()
            self._is_asleep = False


def _sender_of(config: VllmRolloutConfig, template: ModelTemplate) -> WeightSender:
    """Make the sender for an engine in the trainer's process."""
    tensors = template_tensors(template)
    if config.pool.transfer is not Transfer.ipc:
        return MemorySender(tensors)
    return IpcSender(tensors, template.device) if config.tensor_parallel > 1 else DirectSender(tensors)


def _description_folder(files: dict[str, bytes]) -> str:
    """Return a folder with these files, beside vLLM's own cache. The same files give the same folder, because vLLM
    tells models apart by it."""
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:32]
    folder = Path(envs.VLLM_CACHE_ROOT) / "sailvl2" / digest
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if not (folder / name).exists():
            write_file(folder / name, content)
    return str(folder)


def _engine_args(folder: str, dtype: str, config: VllmRolloutConfig, context: int, on_gpu: bool) -> EngineArgs:
    length = min(config.max_prompt_tokens + config.max_completion_tokens, context)
    devices: dict[str, Any] = {"enable_sleep_mode": config.sleeps}
    # Within processes that torchrun started vLLM must not open a group of its own.
    launcher = "external_launcher" if config.pool.placement is Placement.ranks else None
    if launcher:  # one process, which torchrun did not start, has no rank
        os.environ.setdefault("RANK", "0")
        os.environ.setdefault("LOCAL_RANK", "0")
    if not on_gpu:
        devices = cpu_arguments(length)
    return EngineArgs(
        model=folder,
        load_format="dummy",
        dtype=dtype,  # pyright: ignore
        max_model_len=length,
        max_num_seqs=config.max_rows,
        tensor_parallel_size=config.tensor_parallel,
        kv_cache_memory_bytes=int((config.kv_cache_gib or (0 if on_gpu else 1)) * 2**30) or None,
        gpu_memory_utilization=config.gpu_memory_utilization,
        enable_prefix_caching=True,
        mm_encoder_tp_mode="data" if config.tensor_parallel > 1 else "weights",
        limit_mm_per_prompt={"image": config.max_images},
        skip_mm_profiling=not on_gpu,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        async_scheduling=False,
        disable_log_stats=True,
        seed=0,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        distributed_executor_backend=launcher,
        worker_extension_cls="rollouts.vllm_transfer.WorkerExtension",
        **devices,
    )


def cpu_arguments(length: int) -> dict[str, Any]:
    """Settings of an engine on CPU whose requests have at most `length` tokens."""
    tokens = max(_PREFILL_TOKENS, length)
    # Blocks have 32 tokens instead of 128, so that siblings share short prompts too.
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": tokens,
        "block_size": 32,
    }


def sees_gpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cuda()


def _request_id(handle: int, sample: int) -> str:
    return f"{handle}/{sample}"


def _digest(pixels: Tensor) -> str:
    return hashlib.blake2b(pixels.contiguous().numpy().data, digest_size=16).hexdigest()
