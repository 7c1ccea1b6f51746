import pytest
import torch

from dlm.data import Char, Document, HubDataset, Pad, TextFiles, Wrap, prepare
from dlm.data.loaders import EvaluationLoader, Order, Shares, StreamLoader, TrainLoader
from dlm.data.packing import Row


class Numbers:
    """Rows whose tokens are their index."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return Row(torch.tensor([index]), torch.ones(1, dtype=torch.bool), torch.zeros(1).long())


class Clock:
    """A trainer's step counter."""

    def __init__(self, step=0):
        self.step = step

    def __call__(self):
        return self.step


def train_loader(shares, step=0, max_steps=6, size=10, seed=3, workers=0):
    return TrainLoader(
        Numbers(size), seed, shares, max_steps=max_steps, step=Clock(step), num_workers=workers
    )


def seen(loader):
    return [(b.rows.tolist(), b.tokens[:, 0].tolist()) for b in loader]


def test_every_epoch_is_another_permutation_of_all_rows():
    order = Order(10, seed=3)
    epochs = [[order(c) for c in range(10 * e, 10 * e + 10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [Order(10, seed=3)(c) for c in (25, 7, 19)] == [epochs[2][5], epochs[0][7], epochs[1][9]]
    assert [Order(10, seed=4)(c) for c in range(10)] != epochs[0]


def test_a_loader_is_one_batch_longer_than_the_run_and_sized_for_all_of_it():
    shares = Shares(2, accumulation=2)
    assert len(train_loader(shares)) == 13
    assert len(train_loader(shares, step=4)) == 13
    assert len(seen(train_loader(shares))) == 13
    assert len(seen(train_loader(shares, step=4))) == 13 - 8


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_left_is_what_an_unbroken_run_sees(workers):
    shares = Shares(3, accumulation=2)
    whole = seen(train_loader(shares))
    assert [r for rows, _ in whole for r in rows] == list(range(39))
    assert seen(train_loader(shares, step=4, workers=workers)) == whole[8:]


def test_ranks_and_accumulation_deal_out_the_same_samples():
    one = seen(train_loader(Shares(8)))
    parts = [seen(train_loader(Shares(2, accumulation=2, world_size=2, rank=r))) for r in (0, 1)]
    for step in range(6):
        micro = [parts[r][2 * step + a] for a in (0, 1) for r in (0, 1)]
        assert [i for rows, _ in micro for i in rows] == one[step][0]
        assert [i for _, tokens in micro for i in tokens] == one[step][1]


def test_another_batch_size_goes_on_where_the_run_stood():
    state = train_loader(Shares(4), step=5).state_dict()
    assert state == {"step": 5, "counter": 20}
    resumed = train_loader(Shares(3), step=5, max_steps=7)
    resumed.load_state_dict(state)
    assert [rows for rows, _ in seen(resumed)] == [[20, 21, 22], [23, 24, 25], [26, 27, 28]]
    resumed._position._step.step = 7
    assert resumed.state_dict() == {"step": 7, "counter": 26}


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    seen(train_loader(Shares(2), workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_sees_every_row_once():
    parts = [EvaluationLoader(Numbers(7), Shares(2, world_size=2, rank=r)) for r in (0, 1)]
    assert [len(p) for p in parts] == [len(list(p)) for p in parts] == [2, 2]
    rows = sorted(i for part in parts for batch in part for i in batch.rows.tolist())
    assert rows == list(range(7))
    assert len(EvaluationLoader(Numbers(1), Shares(2, world_size=2, rank=1))) == 0


TEXTS = ["ab" * (3 + 7 * i % 11) for i in range(30)]


@pytest.fixture
def stream(jsonl):
    path = jsonl(TEXTS, "set/train.jsonl")
    source = HubDataset(path.rsplit("/", 1)[0], splits={"train": "train"}, streaming=True)
    return source, Char().load(source, mask=True)


def stream_loader(stream, shares, packing=None, step=0, max_steps=8, workers=0):
    return StreamLoader(
        *stream,
        packing or Wrap(),
        8,
        shares,
        max_steps=max_steps,
        step=Clock(step),
        num_workers=workers,
    )


def flat(batches):
    return [
        (int(i), t.tolist(), v.tolist())
        for b in batches
        for i, t, v in zip(b.rows, b.tokens, b.valid, strict=True)
    ]


@pytest.mark.parametrize("packing", [Wrap(), Pad(), Document()])
def test_a_stream_has_the_rows_of_the_stored_split(stream, jsonl, packing):
    blocks = prepare(TextFiles(jsonl(TEXTS), validation_fraction=0), "train", stream[1], packing, 8)
    rows = flat(stream_loader(stream, Shares(4), packing, max_steps=2))
    for counter, tokens, valid in rows:
        assert tokens == blocks[counter].tokens.tolist()
        assert valid == blocks[counter].valid.tolist()


def test_a_stream_starts_over_without_padding(stream):
    rows = flat(stream_loader(stream, Shares(10), max_steps=20))
    tokens = [t for _, row, _ in rows for t in row]
    one = [t for text in TEXTS for t in [*stream[1].encode(text), stream[1].eos_id]]
    assert tokens == (one * 10)[: len(tokens)]
    assert len(tokens) > 2 * len(one)
    assert all(all(valid) for _, _, valid in rows)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("packing", [Wrap(), Pad(), Document()])
def test_a_stream_resumes_exactly(stream, packing, workers):
    shares = Shares(2, accumulation=2, world_size=2)
    whole = list(stream_loader(stream, shares, packing))
    loader = stream_loader(stream, shares, packing, workers=workers)
    for done, _ in enumerate(loader, start=1):
        loader._position._step.step = done // 2
        if done == 7:  # in the middle of the fourth step
            break
    state = loader.state_dict()
    assert (state["step"], state["counter"]) == (3, 24)
    assert state["point"]["state"] is not None
    resumed = stream_loader(stream, shares, packing, step=3, workers=workers)
    resumed.load_state_dict(state)
    assert flat(resumed) == flat(whole[6:])


def test_a_stream_without_a_saved_point_reads_again(stream):
    shares = Shares(2)
    whole = list(stream_loader(stream, shares))
    assert flat(stream_loader(stream, shares, step=5)) == flat(whole[5:])


def test_ranks_share_a_stream(stream):
    one = flat(stream_loader(stream, Shares(4), max_steps=3))
    parts = [flat(stream_loader(stream, Shares(2, 1, 2, r), max_steps=3)) for r in (0, 1)]
    assert sorted(parts[0] + parts[1]) == one
