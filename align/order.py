"""Which rows make a step: one order an epoch, the same on any hardware."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class Order:
    """The order of an epoch's rows: a sampler that knows nothing of devices or micro-batches.

    `lengths` are tokens per row, `batch` rows per step. Rows are shuffled from (seed, epoch), cut
    into megabatches of up to 50 steps, sorted by length in each, and cut into steps, which are
    shuffled; the step with the longest row comes first, so that too little memory shows at once.
    The epoch is filled up to whole steps with its own first rows.
    """

    def __init__(self, lengths: Sequence[int], seed: int, batch: int) -> None:
        import numpy as np

        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.seed = seed
        self.batch = batch
        self.epoch = 0
        self._tokens: list[np.ndarray[Any, Any]] = []

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.lengths) // self.batch)

    @property
    def repeated(self) -> int:
        """Rows seen once more in an epoch, to fill its last step."""
        return self.steps * self.batch - len(self.lengths)

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows(self.epoch).tolist())

    def rows(self, epoch: int) -> np.ndarray[Any, Any]:
        """The rows of that epoch, in order; `batch` of them are a step."""
        import numpy as np

        random = np.random.default_rng([self.seed, epoch])
        shuffled = np.resize(random.permutation(len(self.lengths)), len(self))
        mega = max(1, min(50, self.steps // 4)) * self.batch
        parts = [shuffled[i : i + mega] for i in range(0, len(self), mega)]
        ordered = [part[np.argsort(-self.lengths[part], kind="stable")] for part in parts]
        steps = np.concatenate(ordered).reshape(self.steps, self.batch)
        steps = steps[random.permutation(self.steps)]
        longest = int(self.lengths[steps].max(axis=1).argmax())
        steps[[0, longest]] = steps[[longest, 0]]
        return steps.reshape(-1)

    def tokens(self, step: int) -> int:
        """Tokens of the first `step` steps. Counted here: TRL's count restarts after a resume."""
        epochs, rest = divmod(step, self.steps)
        for epoch in range(len(self._tokens), epochs + (rest > 0)):
            lengths = self.lengths[self.rows(epoch)].reshape(self.steps, self.batch)
            self._tokens.append(lengths.sum(axis=1).cumsum())
        whole = sum(int(ends[-1]) for ends in self._tokens[:epochs])
        return whole + (int(self._tokens[epochs][rest - 1]) if rest else 0)
