"""Several processes that train one model: `torchrun --nproc_per_node=N`.

Contract: the batch of a step is the same whatever the number of workers; each takes its part,
gradients are averaged, and every worker does the same update, so that one process with the same
batch has the same loss. One worker writes. Knows nothing of models.
"""

import atexit
import contextlib
import datetime
import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from v2.runtime.device import choose_device
from v2.runtime.errors import is_out_of_memory

TIMEOUT = datetime.timedelta(minutes=5)  # a worker that waits longer for the others gives up

SIGNS_OF_LOSS = ("gloo", "Gloo", "NCCL", "onnection", "imed out")


@dataclass(frozen=True)
class Workers:
    rank: int = 0
    count: int = 1

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def part(self, rows: np.ndarray) -> np.ndarray:
        """Return this worker's rows of a batch that all of them drew."""
        return rows[self.rank :: self.count]

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replace tensors by their mean over the workers, in one exchange."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = (flat / self.count).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by those of the first worker."""
        if self.count == 1:
            return
        for tensor in tensors:
            sent = tensor.contiguous()
            distributed.broadcast(sent, 0)
            tensor.copy_(sent)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Tell whether any worker raised a flag; all get the same answer."""
        if self.count == 1:
            return flag
        flags = torch.tensor([float(flag)], device=device)
        distributed.all_reduce(flags)
        return bool(flags.item())

    def check_batch(self, name: str, size: int) -> None:
        if size % self.count:
            raise ValueError(f"{name} must divide by {self.count} processes, got {size}")

    def wait(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            distributed.barrier()

    @contextlib.contextmanager
    def loss_explained(self):
        """Say what to do when another of several workers is gone or silent."""
        try:
            yield
        except RuntimeError as error:
            is_lost = any(sign in str(error) for sign in SIGNS_OF_LOSS)
            if self.count == 1 or not is_lost or is_out_of_memory(error):
                raise
            # Skip the interpreter's tear-down: the group's threads hang, and can abort it.
            atexit.register(os._exit, 1)
            raise RuntimeError(
                "another of the training processes ended or hangs; what was saved before is kept: "
                "start all of them again with --resume RUN"
            ) from error

    def leave(self) -> None:
        """Part when all is done. One that fails just ends: with NCCL, parting waits for all."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def join(device_name: str) -> tuple[Workers, torch.device]:
    """Join the processes that torchrun started, or be alone; return the device to use."""
    if "RANK" not in os.environ:
        return Workers(), choose_device(device_name)
    device = choose_device(device_name)
    if device.type == "cuda":
        device = _own_device()
        torch.cuda.set_device(device)
        # Else NCCL aborts a process whose others hang, before it can say so.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    # Torch imports this later: its default arguments would then keep the group after `leave`, and
    # threads of a group can abort a process that ends.
    importlib.import_module("torch.distributed.nn.functional")
    with _variables_explained():
        backend, of_one = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        distributed.init_process_group(backend, timeout=TIMEOUT, device_id=of_one)
    return Workers(distributed.get_rank(), distributed.get_world_size()), device


def _own_device() -> torch.device:
    """Return the CUDA device of this process, one for each on this machine."""
    with _variables_explained():
        local_rank = int(os.environ["LOCAL_RANK"])
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"process {local_rank + 1} on this machine needs a CUDA device of its own, and there "
            f"are {count}: torchrun --nproc_per_node={count}"
        )
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def _variables_explained():
    try:
        yield
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"RANK is set to {os.environ['RANK']!r}, but what else torchrun sets is not "
            f"({error}): unset RANK, or start it with torchrun"
        ) from error
