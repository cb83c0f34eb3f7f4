"""The loss on rows that are not trained, and the weights that had the lowest."""

import sys

from model.batch import Row, pack_rows, split_by_tokens
from model.data.media_error import MediaError
from model.data.sources import RowSource
from model.engine.base import TrainEngine
from model.engine.config import SupervisedConfig
from model.processing.processor import Processor
from model.run.folder import RunFolder
from model.run.state import State


class HeldOut:
    """Evaluates a supervised run now and then, and keeps the best weights in RUN/best.

    Without held-out rows it does nothing.
    """

    def __init__(
        self, config: SupervisedConfig, engine: TrainEngine, processor: Processor, rows: RowSource[Row] | None
    ) -> None:
        self.latest: float | None = None
        self.best: float | None = None
        self.best_step = 0
        self._config, self._dtype = config.evaluation, config.dtype
        self._micro_batch_tokens = config.engine.micro_batch_tokens
        self._engine, self._processor, self._rows = engine, processor, rows

    @property
    def shown(self) -> str:
        """The latest loss for a line of progress; empty where there is none."""
        if self.latest is None or self.best is None:
            return ""
        return f", held out {self.latest:.3f} (best {self.best:.3f} at step {self.best_step})"

    @property
    def summary(self) -> dict[str, float]:
        """The best loss and its step, for the record of a finished run."""
        return {} if self.best is None else {"best_nll_per_token": self.best, "best_step": self.best_step}

    def start(self, step: int, run: RunFolder) -> None:
        """Evaluate what a run starts from."""
        if step == 0:
            self.evaluate_if_due(0, 0, run)
        elif self.best is not None and not (run.folder / "best").exists():
            gone = run.folder / "best"
            print(
                f"{gone} is gone, the weights of step {self.best_step}; the next better ones are kept", file=sys.stderr
            )

    def evaluate_if_due(self, step: int, last: int, run: RunFolder, since: int | None = None) -> dict[str, float]:
        """The loss after `step` updates, for metrics.jsonl; empty when it has not fallen due since update `since`.

        That is the one before unless another is given.
        """
        every, before = self._config.every, step - 1 if since is None else since
        if self._rows is None or not (step // every > before // every or step == last):
            return {}
        nll, tokens, num_rows = self._score(self._rows)
        self.latest = nll / tokens
        if self.best is None or self.latest < self.best:
            self.best, self.best_step = self.latest, step
            with run.space_for("best"):
                self._engine.export(run.folder / "best", self._processor, self._dtype)
        run.append("evaluations.jsonl", step, [{"nll_per_token": self.latest, "tokens": tokens, "rows": num_rows}])
        return {"eval/nll_per_token": self.latest, "eval/best": self.best}

    def state(self) -> State:
        """Data that a checkpoint keeps; `restore` takes it back."""
        bad_rows = [] if self._rows is None else self._rows.bad_rows.state()
        return {"best": [self.best, self.best_step, self.latest], "bad_rows": bad_rows}

    def restore(self, state: State) -> None:
        self.best, self.best_step, self.latest = state["best"]
        if self._rows is not None:
            self._rows.bad_rows.restore(state["bad_rows"])

    def _score(self, source: RowSource[Row]) -> tuple[float, int, int]:
        """(sum of the negative log-likelihoods in nats, scored tokens, rows). `ValueError` where no row is left."""
        count = min(self._config.num_rows or len(source), len(source))
        total, tokens, num_rows = 0.0, 0, 0
        lengths = [source.length(index) for index in range(count)]
        for part in split_by_tokens(lengths, self._micro_batch_tokens, self._engine.num_parts):
            rows = [row for row in (_built(source, index) for index in part) if row is not None]
            if rows:
                inputs = pack_rows(rows, self._processor.placeholder_id, self._processor.config.pixels_per_token)
                total -= sum(scores.logprobs.double().sum().item() for scores in self._engine.logprobs([inputs]))
                tokens += inputs.target_ids.shape[0]
                num_rows += len(rows)
        if not tokens:
            raise ValueError("evaluation.data: no row is left whose images can be read; see the bad rows named above")
        return total, tokens, num_rows


def _built(source: RowSource[Row], index: int) -> Row | None:
    """None for a row whose images cannot be read; it is named."""
    try:
        return source.build(index)
    except MediaError as error:
        source.name_bad(index, str(error))
        return None
