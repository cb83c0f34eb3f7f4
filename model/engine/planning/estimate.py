"""Estimate the memory and the time of an update from shapes alone, before any weight is read.

The counts follow what the layers keep for the backward pass; tests compare them with what autograd saves. Peaks and
times of benchmarks/RESULTS.md are compared by `python -m benchmarks.estimate_error`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from model.config import MoeLanguageConfig, SailVL2Config, Tower
from model.engine.parts import Costs
from model.engine.planning.machines import Machine
from model.engine.planning.shapes import parts_of
from model.lora.adapters import means
from model.lora.config import AdapterConfig, LoraConfig

PIECE = 128  # tokens of a masked product on a CPU, and their keys up to which there are such: dense_attention.py
LONGEST_DENSE = 384
CPU_PROCESS = 25 * 2**20  # bytes of threads and libraries that a first update brings
WHOLE_LOGITS, CPU_BLOCK, GPU_BLOCK = 2**24, 2**21, 2**27  # logits that are one block: logprobs.py


@dataclass(frozen=True)
class MicroBatch:
    """Rows that are all alike: a prompt, completions of one length, and square tiles of an image in the prompt."""

    prefix: int
    num_completions: int
    completion: int
    tiles: int = 0
    num_rows: int = 1

    @property
    def scored(self) -> int:
        return self.num_rows * self.num_completions * self.completion

    @property
    def tokens(self) -> int:
        return self.num_rows * self.prefix + self.scored

    def operations(self, costs: Costs, tokens_per_tile: int) -> float:
        """Floating-point operations of a forward pass."""
        tiles = [(self.tiles, tokens_per_tile)] if self.tiles else []
        return self.num_rows * costs.row(self.prefix, [self.completion] * self.num_completions, tiles)


@dataclass(frozen=True)
class Spread:
    """How a model is spread over processes; the defaults are the engine of one process."""

    is_sharded: bool = False
    ranks: int = 1
    replicas: int = 1
    per_node: int = 8
    offload_moments: bool = False  # with DeepSpeed the float32 weights too
    reduce_each: bool = True
    stage: int = 3  # stage of ZeRO; FSDP2 shards what stage 3 does

    @property
    def shards(self) -> int:
        return self.ranks // self.replicas

    @property
    def is_within_node(self) -> bool:
        return self.shards <= self.per_node


@dataclass(frozen=True)
class Job:
    """A model that trains, with which settings of the engine, on which kind of device."""

    config: SailVL2Config
    batch: MicroBatch
    num_batches: int = 1  # micro-batches of one process in an update
    spread: Spread = Spread()
    checkpointing: bool = False
    on_gpu: bool = True  # computes in bfloat16 by the kernels for GPUs; else in float32 by those for CPUs
    freeze: tuple[Tower, ...] = ()
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    has_reference: bool = False
    has_gated_kernel: bool = True  # silu(gate) * up on a GPU is one kernel, which keeps a third less

    @property
    def width(self) -> int:
        """Bytes of a number that computes."""
        return 2 if self.on_gpu else 4

    @cached_property
    def sizes(self) -> "Sizes":
        return Sizes.of(self.config, self.freeze, self.adapter)

    @property
    def trains_tower(self) -> bool:
        return self.sizes.vision_trained > 0


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, a tied pair once."""

    total: int
    trained: int
    adapters: int  # in low-rank matrices; 0 without
    vision_trained: int
    root: int  # outside of all blocks
    largest_block: int
    largest_block_trained: int
    head: int
    head_trains: bool
    is_tied: bool

    @classmethod
    def of(cls, config: SailVL2Config, freeze: Sequence[Tower] = (), adapter: AdapterConfig | None = None) -> "Sizes":
        """Count them from the shapes."""
        lora = adapter if isinstance(adapter, LoraConfig) else None
        frozen = tuple(f"{tower.value}." for tower in freeze)
        blocks: dict[str, list[int]] = {}
        total = adapters = trained = vision = 0
        for part in parts_of(config):
            own = 0
            if lora and part.sides and any(means(target, part.name) for target in lora.targets):
                own = part.adapter(lora.rank)
            adapters += own
            trains = 0 if part.name.startswith(frozen) else own if lora else part.weights
            total += part.weights + own
            trained += trains
            vision += trains if part.name.startswith(f"{Tower.vision.value}.") else 0
            if ".blocks." in part.name or ".layers." in part.name:
                found = blocks.setdefault(".".join(part.name.split(".")[:4]), [0, 0])
                found[0] += part.weights + own
                found[1] += trains
        language = config.language
        return cls(
            total=total,
            trained=trained,
            adapters=adapters,
            vision_trained=vision,
            root=total - sum(count for count, _ in blocks.values()),
            largest_block=max(count for count, _ in blocks.values()),
            largest_block_trained=max(count for _, count in blocks.values()),
            head=language.vocab_size * language.hidden_size,
            head_trains=lora is None and Tower.language not in freeze,
            is_tied=language.tie_word_embeddings,
        )


@dataclass(frozen=True)
class Kept:
    """Bytes that the forward pass keeps for the backward pass, by where."""

    layer: float  # a decoder layer
    layer_input: float  # its part that stays when layers are recomputed
    block: float  # a block of the tower
    block_input: float
    rest: float  # embeddings, adapter, last norm and head
    head_work: float  # in the head's forward and backward pass beside it
    layer_work: float  # in the backward pass of a layer beside it

    @classmethod
    def of(cls, job: Job) -> "Kept":
        config, batch, width = job.config, job.batch, job.width
        language, vision = config.language, config.vision
        tokens, scored = batch.tokens, batch.scored
        tiles = batch.tiles * batch.num_rows
        visual, patches = tiles * config.num_image_tokens, tiles * vision.num_patches
        hidden, vocabulary = language.hidden_size, language.vocab_size
        layer, work = _layer(job)
        gate = 3 if job.on_gpu and job.has_gated_kernel else 4
        block = patches * width * (8 * vision.hidden_size + gate * vision.intermediate_size)
        if patches and not job.on_gpu:
            block += 4 * 2 * vision.hidden_size * vision.intermediate_size  # joint weights are a copy
        block_input = patches * width * vision.hidden_size
        logits = scored * vocabulary
        rest = tokens * width * hidden * (1 if job.on_gpu else 2) + scored * width * hidden
        if job.trains_tower:
            rest += patches * width * 2 * vision.hidden_size
        rest += visual * width * (2 * 4 * vision.hidden_size + 2 * hidden) if _adapter_trains(job) else 0
        if job.on_gpu:
            head_work = scored * 6 * hidden + 2 * 2 * min(logits, GPU_BLOCK)
        else:
            rest += 4 * logits if logits <= WHOLE_LOGITS else 0
            head_work = scored * 4 * hidden + 3 * 4 * (logits if logits <= WHOLE_LOGITS else CPU_BLOCK)
        is_kept = job.trains_tower
        return cls(
            layer=layer,
            layer_input=tokens * width * hidden,
            block=block if is_kept else 0.0,
            block_input=block_input if is_kept else 0.0,
            rest=rest,
            head_work=head_work,
            layer_work=work,
        )

    def all(self, config: SailVL2Config, checkpointing: bool) -> float:
        """Bytes when the backward pass begins."""
        layers, blocks = config.language.num_hidden_layers, config.vision.num_hidden_layers
        if not checkpointing:
            return layers * self.layer + blocks * self.block + self.rest
        return layers * self.layer_input + blocks * self.block_input + self.rest

    def tower(self, config: SailVL2Config, checkpointing: bool) -> float:
        """Bytes when the backward pass comes to the tower."""
        blocks = config.vision.num_hidden_layers
        if not checkpointing:
            return blocks * self.block + 2 * self.layer_input
        return blocks * self.block_input + 2 * self.layer_input + 1.6 * self.block


def _adapter_trains(job: Job) -> bool:
    if job.trains_tower:
        return True
    if isinstance(job.adapter, LoraConfig):
        return Tower.adapter not in job.freeze and any("mlp1" in target for target in job.adapter.targets)
    return Tower.adapter not in job.freeze


def _layer(job: Job) -> tuple[float, float]:
    """Bytes that a decoder layer keeps, and those of its backward pass beside them."""
    language, batch, width, tokens = job.config.language, job.batch, job.width, job.batch.tokens
    hidden, heads = language.hidden_size, language.num_attention_heads * language.head_dim
    keys = language.num_key_value_heads * language.head_dim
    # On a GPU two norms with input and output, queries and keys before and after their rotation, values, the output.
    # On a CPU norms keep normed rows instead of inputs, and heads stay before and after rotation and norm, joint and
    # split.
    numbers = 4 * hidden + (3 * heads + 3 * keys if job.on_gpu else 5 * heads + 4 * keys)
    kept = float(tokens * width * numbers + 4 * tokens * language.num_attention_heads)
    if isinstance(language, MoeLanguageConfig):
        chosen, inner = language.num_experts_per_tok, language.moe_intermediate_size
        kept += tokens * (width * chosen * (2 * hidden + 4 * inner) + 4 * language.num_experts + 24 * chosen)
        work = tokens * width * (3 * hidden + chosen * (2 * hidden + 3 * inner))
        joint = heads + 2 * keys
    else:
        inner = language.intermediate_size
        kept += tokens * width * inner * (3 if job.on_gpu and job.has_gated_kernel else 4)
        work = tokens * width * 3 * (hidden + inner)
        joint = heads + 2 * keys + 2 * inner
    if not job.on_gpu:
        if not isinstance(job.adapter, LoraConfig):
            kept += 4 * hidden * joint  # joint weights are a copy
        longest = batch.prefix + batch.completion
        if longest <= LONGEST_DENSE:
            seen = batch.prefix + min(PIECE, batch.num_completions * batch.completion)
            kept += 4 * tokens * language.num_attention_heads * seen
    if isinstance(job.adapter, LoraConfig):
        kept += tokens * width * 7 * job.adapter.rank
    elif Tower.language in job.freeze:
        kept -= tokens * width * (2 * hidden + (0 if isinstance(language, MoeLanguageConfig) else inner))
    return kept, float(work)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak, by part, and of the host for all processes of a node."""

    weights: float
    gradients: float
    moments: float
    gathered: float  # whole layers on top of the shards
    activations: float
    head: float
    reference: float
    host: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if name != "host"}

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def certain(self) -> float:
        """Everything that stays between the passes, whatever the rows are."""
        return self.weights + self.gradients + self.moments + self.reference


def memory(job: Job) -> Memory:
    """The peak over the moments of an update: before its first gradient, before the tower's, and with all of them."""
    sizes, spread, width = job.sizes, job.spread, job.width
    shards = spread.shards
    frozen = sizes.total - sizes.trained
    is_adapted = sizes.adapters > 0
    if is_adapted:
        weights = (width * (sizes.total - sizes.adapters) + 4 * sizes.adapters) / shards
    else:
        has_copy = job.on_gpu and not spread.is_sharded
        weights = (4 + (2 if has_copy else 0)) * (sizes.trained + frozen) / shards
    gradients, moments = 4 * sizes.trained / shards, 8 * sizes.trained / shards
    host = 0.0
    if spread.offload_moments:
        host, moments = moments * min(spread.ranks, spread.per_node), 0.0
    if spread.is_sharded and not spread.reduce_each:
        gradients += 4 * sizes.trained
    gathered = 0.0
    if spread.is_sharded:
        blocks = width * (2 * sizes.root + 3 * sizes.largest_block) + (width + 4) * sizes.largest_block_trained
        gathered = blocks if shards > 1 else width * (sizes.root + 2 * sizes.largest_block)
    if spread.is_sharded and spread.stage < 3:
        masters = 4 * sizes.trained / shards
        weights, gathered = width * sizes.total + (0.0 if spread.offload_moments else masters), 0.0
        host += masters * min(spread.ranks, spread.per_node) if spread.offload_moments else 0.0
        gradients = 4 * sizes.trained / (shards if spread.stage == 2 else 1)
    reference = (0.0 if is_adapted or not job.has_reference else width * sizes.total) / shards
    kept = Kept.of(job)
    layers = kept.all(job.config, job.checkpointing)
    working = kept.layer_work + (kept.layer if job.checkpointing else 0.0)
    head_gradient = (width if sizes.is_tied else width + 4 / shards) * sizes.head if sizes.head_trains else 0.0
    before_tower = 4 * (sizes.trained - sizes.vision_trained) / shards
    same = {"weights": weights, "moments": moments, "gathered": gathered, "reference": reference, "host": host}
    last = head_gradient + kept.head_work
    if not job.on_gpu:
        # Freed memory stays with the process in pieces, into which later tensors fit badly: what layers that are made
        # twice need counts twice, and gradients do not take the place of what is freed.
        working = 2 * (kept.layer + kept.layer_work) if job.checkpointing else kept.layer_work
        return Memory(gradients=gradients, activations=layers + working + CPU_PROCESS, head=kept.head_work, **same)
    found = [
        Memory(gradients=0.0, activations=layers, head=last, **same),
        Memory(gradients=0.0, activations=layers + working, head=head_gradient, **same),
        Memory(
            gradients=before_tower, activations=kept.tower(job.config, job.checkpointing), head=head_gradient, **same
        ),
        Memory(gradients=gradients, activations=0.0, head=0.0, **same),
    ]
    if job.num_batches > 1 or (spread.is_sharded and not spread.reduce_each):
        found += [
            Memory(gradients=gradients, activations=layers, head=last, **same),
            Memory(gradients=gradients, activations=layers + working, head=head_gradient, **same),
        ]
    return max(found, key=lambda one: one.total)


# The next figures are fitted to the updates of benchmarks/RESULTS.md together, never to one of them alone.
PRODUCT_SHARE = {
    True: 0.765,
    False: 1.0,
}  # share of the data sheet's FLOP/s that a large product reaches; measured on an H200
LAYER_SHARE = {True: 0.62, False: 1.0}  # share of that, which the products of the layers reach
BLOCK_SECONDS = {True: 0.9e-3, False: 0.14e-3}  # launches of one block, forward and backward
TRAFFIC = {True: 0.0, False: 20.0}  # times that each kept byte goes through the memory
STEP_BYTES = {True: 44, False: 40}  # bytes that AdamW, norms and copies move for each parameter that trains
BANDWIDTH_SHARE = 0.8
LINK_SHARE = 0.8


@dataclass(frozen=True)
class UpdateTime:
    """Seconds of one update of one process, by what takes them."""

    compute: float
    traffic: float  # moving weights and gradients, where that takes longer than computing
    step: float  # clipping and AdamW

    @property
    def total(self) -> float:
        return self.compute + self.traffic + self.step


def pass_seconds(job: Job, machine: Machine, passes: float) -> tuple[float, float]:
    """Seconds of computing a micro-batch, `passes` times a forward pass; and those by which gathering outlasts it."""
    config, spread = job.config, job.spread
    costs = Costs.of(config)
    forward = job.batch.operations(costs, config.num_image_tokens)
    rate = machine.peak * PRODUCT_SHARE[machine.is_gpu] * LAYER_SHARE[machine.is_gpu]
    blocks = config.language.num_hidden_layers + (config.vision.num_hidden_layers if job.batch.tiles else 0)
    has_gradient = passes > 1
    kept = Kept.of(job).all(config, checkpointing=False) if has_gradient else 0.0
    seconds = passes * forward / rate + blocks * BLOCK_SECONDS[machine.is_gpu] * passes / 3
    seconds += TRAFFIC[machine.is_gpu] * kept / machine.bandwidth
    if not spread.is_sharded or spread.shards == 1:
        return seconds, 0.0
    sizes, width = job.sizes, job.width
    moved = (2 * width * sizes.total + 4 * sizes.trained) if has_gradient else width * sizes.total
    link = (machine.link if spread.is_within_node else machine.network) * LINK_SHARE
    gathering = moved * (spread.shards - 1) / spread.shards / link
    return seconds, max(0.0, gathering - seconds)


def update_seconds(job: Job, machine: Machine) -> UpdateTime:
    """Seconds of an update of `job.num_batches` micro-batches; gathering is taken to hide behind computing."""
    sizes, spread = job.sizes, job.spread
    passes = 3.0 if sizes.trained == sizes.total else 2.0 + sizes.trained / sizes.total
    compute, traffic = pass_seconds(job, machine, passes + (1.0 if job.checkpointing else 0.0))
    bandwidth = machine.bandwidth * BANDWIDTH_SHARE
    step = STEP_BYTES[machine.is_gpu] * sizes.trained / spread.shards / bandwidth
    if spread.offload_moments:
        # Gradients down, weights up; AdamW on the host's memory, which all GPUs of the node share: 300e9 bytes a second
        # are assumed.
        own = sizes.trained / spread.shards
        step = 8 * own / machine.host_link + 28 * own * min(spread.ranks, spread.per_node) / 300e9
    if spread.replicas > 1:
        step += 4 * sizes.trained / spread.shards / (machine.network * LINK_SHARE)
    return UpdateTime(job.num_batches * compute, job.num_batches * traffic, step)
