"""A classifier on a frozen vision tower: two layers over the mean of the last block's tokens.

SAIL-VL2 report, table 6, which names the mean, the two layers and 10 epochs. The rest is ours: features scaled to mean
0 and deviation 1 of the training set, a hidden layer as wide as the features with GELU, AdamW with a cosine to 0.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from model.data.order import KeyedOrder
from model.engine.config import OptimizerConfig, Schedule
from model.engine.optimizer import AdamW
from model.engine.schedule import learning_rate_at
from model.pretrain.probes.config import ProbeConfig
from model.pretrain.probes.labelled import LabelledImage
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2


def tiles_of(row: LabelledImage, processor: Processor, device: torch.device) -> Tensor:
    """The one tile [1, 3, height, width] of an image."""
    (pixels,) = processor.open_images(row.root, [row.image], max_tiles=1)
    return pixels[:1].to(device)


@torch.no_grad()
def features_of(model: SailVL2, processor: Processor, rows: Sequence[LabelledImage], batch_size: int) -> Tensor:
    """Mean of the last block's tokens of every image [N, D], float32 on CPU."""
    found = []
    dtype = model.dtype
    for batch in _batches(rows, batch_size):
        pixels = [tiles_of(row, processor, model.device).to(dtype) for row in batch]
        sizes = sorted({tuple(one.shape[2:]) for one in pixels})
        features = [torch.empty(0)] * len(pixels)
        grouped = [torch.cat([one for one in pixels if tuple(one.shape[2:]) == size]) for size in sizes]
        for size, tokens in zip(sizes, model.vision_model(grouped), strict=True):
            members = [number for number, one in enumerate(pixels) if tuple(one.shape[2:]) == size]
            for number, own in zip(members, tokens.float().mean(1).cpu(), strict=True):
                features[number] = own
        found += features
    return torch.stack(found)


def _batches(rows: Sequence[LabelledImage], size: int) -> Iterator[Sequence[LabelledImage]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


Labelled = tuple[Tensor, list[int]]
"""(features [N, D], the number of each one's class)."""


def top1(train: Labelled, test: Labelled, num_classes: int, config: ProbeConfig) -> float:
    """Accuracy on the test set of a head that was trained on the other one. A function of the seed."""
    features, labels = train[0], torch.tensor(train[1])
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    features, tested = (features - mean) / deviation, (test[0] - mean) / deviation
    head = _head(features.shape[1], num_classes, config.seed)
    steps_per_epoch = -(-len(features) // config.batch_size)
    total = config.epochs * steps_per_epoch
    settings = OptimizerConfig(config.learning_rate, schedule=Schedule.cosine)
    optimizer = AdamW(head.named_parameters(), settings)
    order = KeyedOrder(len(features), config.seed, "probe")
    for step in range(total):
        epoch, part = divmod(step, steps_per_epoch)
        start = part * config.batch_size
        chosen = order.rows(epoch * len(features) + start, min(config.batch_size, len(features) - start))
        nn.functional.cross_entropy(head(features[chosen]), labels[chosen]).backward()
        optimizer.step(learning_rate_at(step, total, settings))
        optimizer.zero_grad()
    with torch.no_grad():
        right = head(tested).argmax(-1) == torch.tensor(test[1])
    return right.double().mean().item()


def _head(width: int, num_classes: int, seed: int) -> nn.Sequential:
    head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in head.named_parameters():
            weight.zero_() if name.endswith("bias") else weight.normal_(0.0, width**-0.5, generator=generator)
    return head
