"""Train the toy head under DDP and FSDP2 on two processes: the gradients of one process."""

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dlm.objectives import Elbo
from dlm.parameterizations import LeaveOneOut
from dlm.processes import State
from tests.unit.ops.head_cases import (
    Batch,
    Loss,
    assert_near,
    batch,
    gradients,
    model,
    process_of,
)


def half(data: Batch, rank: int) -> Batch:
    x0, state, t, weight = data
    at = slice(2 * rank, 2 * rank + 2)
    return x0[at], State(state.tokens[at]), t[at], weight[at]


def made() -> Loss:
    return Loss(model(process_of("uniform"), LeaveOneOut()), Elbo())


def whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    data = batch(process_of("uniform"))
    single = made()
    expected = gradients(single, single(*data) / 2)  # both average over processes
    sharded = made()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    ways: dict[str, nn.Module] = {
        "ddp": DistributedDataParallel(made(), find_unused_parameters=True),
        "fsdp": sharded,
    }
    for name, module in ways.items():
        found = gradients(module, module(*half(data, rank)))
        found = {key.removeprefix("module."): whole(value) for key, value in found.items()}
        assert_near(found, expected, 5e-6)
        if rank == 0:
            sys.stdout.write(f"{name}\n")
            sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(worker, (folder,), nprocs=2, start_method="fork")
