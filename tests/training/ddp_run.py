"""Train on some processes: `-m tests.training.ddp_run FOLDER DEVICES PER_DEVICE ACCUMULATE`."""

import sys
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from dlm.times import ImportanceSampled
from tests.training.tiny import Loader, module, rows, trainer


def main(folder: Path, devices: int, per_device: int, accumulate: int) -> None:
    """Five steps of eight sequences in all, with a validation, every rank its share of it."""
    torch.set_num_threads(1)
    strategy = DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"
    run = trainer(
        folder,
        5,
        devices=devices,
        strategy=strategy,
        accumulate_grad_batches=accumulate,
        val_check_interval=accumulate * 5,
    )
    rank = run.global_rank
    loader = Loader(per_device, rank, devices)
    validation = DataLoader([rows(range(rank, 6, devices))], batch_size=None)
    times = ImportanceSampled(bins=4, min_draws=1)  # learned: the ranks must agree on the losses
    run.fit(module(8, times=times), loader, validation)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
