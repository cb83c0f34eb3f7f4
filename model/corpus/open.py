"""Corpora of a run, opened as its settings say."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from model.corpus.corpus import Corpus
from model.corpus.files import shard_files
from model.corpus.stream import Stream
from model.data.config import HELD_OUT, SourceConfig, StreamConfig, TableConfig
from model.data.sources import DataFolders
from model.json_values import read_json_object
from model.processing.processor import Processor
from model.run.identity import Input, digest_of_ends


def open_stream(
    data: StreamConfig, table: TableConfig, capacity: int, processor: Processor, seed: int, folders: DataFolders
) -> Stream:
    """The stream of `data.sources`, in micro-batches of `capacity` tokens, read as `table` says.

    `ValueError` names what cannot be read.
    """
    weights = source_weights(data)
    used = {name: source for name, source in data.sources.items() if weights[name] > 0}
    if not used:
        raise ValueError("data.sources: expected a source with a weight above 0, found none")
    corpora = {
        name: Corpus(
            name,
            source,
            data.folder,
            table,
            data.loader,
            processor,
            folders.named(name),
            capacity,
            data.packing.too_long,
        )
        for name, source in used.items()
    }
    return Stream(
        corpora,
        weights,
        processor,
        data.packing,
        data.loader,
        data.micro_batches_per_step,
        capacity,
        seed,
        opens_images=not processor.stores_pictures,
    )


def open_held_out(
    source: SourceConfig, data: StreamConfig, table: TableConfig, processor: Processor, folders: DataFolders
) -> Corpus:
    """`evaluation.data` as rows of the shapes of a stream, read as `source` says (`StreamConfig.held_out`)."""
    key = "evaluation.data"
    longest = processor.config.language.max_position_embeddings
    loader = replace(data.loader, workers=0)
    return Corpus(HELD_OUT, source, "", table, loader, processor, folders, longest, key=key)


def source_weights(data: StreamConfig) -> Mapping[str, float]:
    """The weight of every source: of `data.source_weights` where that is given. `ValueError` for unknown names."""
    weights = {name: source.weight for name, source in data.sources.items()}
    if not data.source_weights:
        return weights
    path = Path(data.source_weights)
    try:
        given = read_json_object(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"data.source_weights: expected a JSON object at {path}, found: {error}") from None
    if unknown := sorted(given.keys() - weights.keys()):
        raise ValueError(
            f"data.source_weights: {path}: expected names of data.sources ({', '.join(weights)}), found {unknown[0]!r}"
        )
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(
                f"data.source_weights: {path}: {name}: expected a number of 0 or more, found {value!r:.80}"
            )
    return {**weights, **given}


def inputs_of_sources(data: StreamConfig) -> dict[str, Input]:
    """Checksums of all sources, from the size and the ends of each of their files, without opening indices."""
    found: dict[str, Input] = {}
    for name, source in data.sources.items():
        key = f"data.sources.{name}.paths"
        files = shard_files(key, data.folder, source.paths)
        found[key] = Input(", ".join(source.paths), digest_of_ends(files))
        if source.row_weights:
            weights = Path(source.row_weights)
            found[f"data.sources.{name}.row_weights"] = Input(str(weights), digest_of_ends([weights]))
    if data.source_weights:
        text = repr(sorted(source_weights(data).items()))
        found["data.source_weights"] = Input(data.source_weights, hashlib.sha256(text.encode()).hexdigest())
    return found
