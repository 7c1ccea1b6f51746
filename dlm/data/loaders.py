"""Loaders: which rows a step sees, on which rank, also after a resume.

Training counts samples: counter 0, 1, 2, ... over the whole run, across epochs and ranks. With W
ranks, A micro-batches a step and B rows a micro-batch, a step takes G = W A B counters; micro-batch
a of rank r in a step that begins at counter c holds

    c + (a W + r) B + [0, B).

So two ranks see what one rank with the doubled batch sees. Stored data: counter i is row
`permutation(seed, i // N)[i % N]`. Streams: counter i is row i of the stream.

**Resuming.** Lightning restores progress counters but not a position in the data: it asks a loader
with `state_dict` for its state when it saves, and expects `len()` to be the whole run, what was
done included. The loaders here take their position from the number of optimizer steps, asked for
when the first batch is drawn: nothing that workers have fetched ahead is counted. Their state is
the counter of the next step; a batch size changed on resume therefore goes on where the run stood.
They are longer than the run by one batch, so that the end of training is never the end of an epoch:
a finished run can be extended without a trace.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, final

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from dlm.data.packing import Batch, Packing, Row, Rows, batches, collate
from dlm.data.sources import StreamingSource
from dlm.data.stream import START, Point, stream_rows
from dlm.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Shares:
    """How the samples of a step are dealt out."""

    batch_size: int  # rows of a micro-batch on one rank
    accumulation: int = 1
    world_size: int = 1
    rank: int = 0

    @property
    def step_size(self) -> int:
        """G: samples of one optimizer step over all ranks."""
        return self.batch_size * self.accumulation * self.world_size

    def counters(self, first: int, micro: int) -> range:
        """The counters of micro-batch `micro` on this rank, in a step that begins at `first`."""
        start = first + (micro * self.world_size + self.rank) * self.batch_size
        return range(start, start + self.batch_size)


@final
class Order:
    """Counter to row: every epoch a permutation of all rows, a function of (seed, epoch)."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self._num_rows, self._seed = num_rows, seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def __call__(self, counter: int) -> int:
        """The row of a sample counter."""
        epoch, index = divmod(counter, self._num_rows)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self._seed % 2**64, epoch]))
            self._permutation, self._epoch = generator.permutation(self._num_rows), epoch
        return int(self._permutation[index])


@final
class _Position:
    """Optimizer steps to sample counters; only a resume with another step size bends the line."""

    def __init__(self, step: Callable[[], int], step_size: int) -> None:
        self._step, self._step_size = step, step_size
        self._from_step = self._from_counter = 0

    def step(self) -> int:
        return self._step()

    def counter(self, step: int) -> int:
        return self._from_counter + (step - self._from_step) * self._step_size

    def state(self) -> dict[str, int]:
        step = self._step()
        return {"step": step, "counter": self.counter(step)}

    def load(self, state: dict[str, Any]) -> None:
        self._from_step, self._from_counter = state["step"], state["counter"]


@final
class TrainLoader:
    """Batches of stored rows for a whole run; sized and stateful, see the module."""

    def __init__(
        self,
        blocks: Rows,
        seed: int,
        shares: Shares,
        *,
        max_steps: int,
        step: Callable[[], int],
        num_workers: int = 0,
    ) -> None:
        """One loader serves a whole run.

        Args:
            blocks: the rows.
            seed: of the order.
            shares: batch size, accumulation, ranks.
            max_steps: optimizer steps of the run.
            step: how many optimizer steps are done, asked when iteration begins.
            num_workers: processes that fetch ahead; changes nothing but speed.
        """
        self._blocks, self._seed, self._shares = blocks, seed, shares
        self._max_steps, self._num_workers = max_steps, num_workers
        self._position = _Position(step, shares.step_size)

    def __len__(self) -> int:
        return self._max_steps * self._shares.accumulation + 1

    def __iter__(self) -> Iterator[Batch]:
        # A generator: this line runs when the first batch is drawn, after the resume.
        first = self._position.step()
        left = len(self) - first * self._shares.accumulation
        yield from DataLoader(
            _Lookup(self._blocks),  # pyright: ignore[reportArgumentType] - looked up by pairs
            batch_sampler=islice(self._keys(first), max(left, 0)),
            collate_fn=_collate,
            **_workers(self._num_workers),
        )

    def _keys(self, first: int) -> Iterator[list[tuple[int, int]]]:
        """Micro-batches from a step on, as pairs of counter and row."""
        order = Order(len(self._blocks), self._seed)
        for step in count(first):
            begin = self._position.counter(step)
            for micro in range(self._shares.accumulation):
                yield [(i, order(i)) for i in self._shares.counters(begin, micro)]

    def state_dict(self) -> dict[str, Any]:
        """The counter at which the next step begins."""
        return self._position.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._position.load(state_dict)


@final
class StreamLoader:
    """Batches of a stream for a whole run; sized and stateful, see the module.

    Every rank reads the whole stream and keeps its share, so that what is trained on does not
    depend on their number. At most one worker reads ahead.
    """

    def __init__(
        self,
        source: StreamingSource,
        tokenizer: Tokenizer,
        packing: Packing,
        length: int,
        shares: Shares,
        *,
        max_steps: int,
        step: Callable[[], int],
        num_workers: int = 0,
    ) -> None:
        """See `TrainLoader` and `stream_rows` for the arguments."""
        self._stream = (source, tokenizer, packing, length)
        self._shares, self._max_steps = shares, max_steps
        self._num_workers = num_workers
        self._position = _Position(step, shares.step_size)
        self._points: dict[int, Point] = {0: START}

    def __len__(self) -> int:
        return self._max_steps * self._shares.accumulation + 1

    def __iter__(self) -> Iterator[Batch]:
        first = self._position.step()
        # Without a point for this step (a checkpoint saved elsewhere) the stream is read again.
        begin = self._position.counter(first)
        rows = (self._points[first], begin) if first in self._points else (START, 0)
        left = len(self) - first * self._shares.accumulation
        reader = _Reader(self._stream, self._shares, begin, *rows)
        loader = DataLoader(
            reader, batch_size=None, collate_fn=_same, **_workers(min(self._num_workers, 1))
        )
        for micro, (batch, point) in enumerate(islice(loader, max(left, 0)), start=1):
            if point is not None:  # the last of its step: remember where the next one begins
                done = first + micro // self._shares.accumulation
                self._points = {n: p for n, p in self._points.items() if n == done - 1}
                self._points[done] = point
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Counter and place in the stream at which the next step begins."""
        state = self._position.state()
        return {**state, "point": self._points.get(state["step"])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._position.load(state_dict)
        point = state_dict["point"]
        self._points = {} if point is None else {state_dict["step"]: point}


@final
class EvaluationLoader:
    """Every row once: rank r has rows r, r + W, ...; nothing repeated, nothing padded."""

    def __init__(self, blocks: Rows, shares: Shares) -> None:
        self._blocks, self._shares = blocks, shares

    def __len__(self) -> int:
        mine = len(range(self._shares.rank, len(self._blocks), self._shares.world_size))
        return -(-mine // self._shares.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        s = self._shares
        return batches(self._blocks, s.batch_size, rank=s.rank, world_size=s.world_size)


@final
class _Lookup(Dataset[tuple[Row, int]]):
    """Rows by pairs of counter and row."""

    def __init__(self, blocks: Rows) -> None:
        self._blocks = blocks

    def __getitem__(self, index: tuple[int, int]) -> tuple[Row, int]:
        counter, row = index
        return self._blocks[row], counter


@final
class _Reader(IterableDataset[tuple[Batch, Point | None]]):
    """Micro-batches of one rank out of a stream; the last of each step carries the next point."""

    def __init__(
        self,
        stream: tuple[StreamingSource, Tokenizer, Packing, int],
        shares: Shares,
        begin: int,
        point: Point,
        point_counter: int,
    ) -> None:
        """`point` is where row `point_counter` begins; the first step begins at row `begin`."""
        self._stream, self._shares, self._begin = stream, shares, begin
        self._point, self._point_counter = point, point_counter

    def __iter__(self) -> Iterator[tuple[Batch, Point | None]]:
        s = self._shares
        rows = islice(
            stream_rows(*self._stream, self._point), self._begin - self._point_counter, None
        )
        for begin in count(self._begin, s.step_size):
            for micro in range(s.accumulation):
                mine = s.counters(begin, micro)
                everyone = list(islice(rows, s.batch_size * s.world_size))
                first = s.rank * s.batch_size
                kept = [row for row, _ in everyone[first : first + s.batch_size]]
                last = micro == s.accumulation - 1
                yield collate(kept, mine), everyone[-1][1] if last else None


def _collate(items: Sequence[tuple[Row, int]]) -> Batch:
    return collate([row for row, _ in items], [counter for _, counter in items])


def _same(item: Any) -> Any:
    return item


def _workers(num_workers: int) -> dict[str, Any]:
    """DataLoader arguments: the number of workers, and a generator of its own.

    Without one, every iterator draws a seed from the global generator, which would make the number
    of resumes part of every later draw.
    """
    if num_workers:
        # Forking after the tokenizer's threads ran is safe only if the child does not use them.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return {"num_workers": num_workers, "generator": torch.Generator()}
