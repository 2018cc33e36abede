"""Training in several processes: each sees its lines of every batch, and all take the same steps.

A term's denominators are means over all processes too, so the losses and steps are those of a single process but for
the order of sums. PyTorch's own wrapper asks for one forward call a step; the fields have several, and codes with
sparse gradients, hence gradients are averaged here, after the backward pass.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from storage.errors import ConfigError, NphmError, one_line


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees them.

    Attributes:
        rank: which one this is, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that saves and tells."""
        return self.rank == 0

    def lines(self, count: int) -> slice:
        """Which of a batch's lines are this process's.

        Raises:
            ConfigError: they can't be dealt out evenly.
        """
        if count % self.world:
            why = f"{count} lines a batch for {self.world} processes"
            remedy = "choose subjects_per_step, scans_per_step and blends_per_step that the number of processes divides"
            raise ConfigError(one_line("batches can't be dealt out evenly", "training", why, remedy))
        return slice(self.rank, None, self.world)

    def part(self, batch: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """This process's lines of a batch."""
        return {name: values[self.lines(len(values))] for name, values in batch.items()}

    @torch.no_grad()
    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all processes, as a constant."""
        value = value.detach()
        if self.world == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.world

    def mean_gradients(self, networks: Sequence[nn.Parameter], codes: nn.Parameter) -> None:
        """Let every process hold the mean of all processes' gradients; the codes' stay sparse."""
        if self.world == 1:
            return
        owned = [p for p in networks if p.requires_grad]
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in owned])
        mean = self.mean(flat).split([p.numel() for p in owned])
        for parameter, part in zip(owned, mean, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        touched = torch.zeros(len(codes), device=codes.device)
        values = torch.zeros_like(codes)
        if codes.grad is not None:
            gradient = codes.grad.coalesce()
            touched[gradient.indices()[0]] = 1
            values[gradient.indices()[0]] = gradient.values()
        values = self.mean(values)
        index = self.mean(touched).nonzero()[:, 0]
        if len(index):
            codes.grad = torch.sparse_coo_tensor(index[None], values[index], codes.shape, is_coalesced=True)

    def agree(self, value: float) -> float:
        """The first process's value."""
        if self.world == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        told = torch.tensor([value], dtype=torch.float64, device=device)
        dist.broadcast(told, 0)
        return float(told)

    def wait(self) -> None:
        """Return once all processes are here."""
        self.agree(0.0)


ALONE = Processes()
"""A single process."""

PATIENCE = timedelta(minutes=30)
"""So long processes wait for one another; the first may be busy with a look at people set aside."""
_PAUSE = timedelta(seconds=0.1)
"""Between two looks at who has come."""


def join(rank: int, world: int, local_rank: int, patience: timedelta = PATIENCE) -> tuple[Processes, str]:
    """Join the processes that ``torchrun`` started; its own environment says where they meet.

    Args:
        rank, world: this process's number and how many there are.
        local_rank: its number on this host, which is its GPU's where there are GPUs.
        patience: how long to wait for the others, now and at every step.

    Returns:
        The processes, and the device that this one is to use.

    Raises:
        NphmError: the others did not come in time.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=patience))
    own = own_store(store, rank, world, patience)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=patience, store=own, rank=rank, world_size=world)
    return Processes(rank, world), f"cuda:{local_rank}" if on_gpu else "cpu"


def own_store(store: dist.Store, rank: int, world: int, patience: timedelta) -> dist.Store:
    """The part of a store in which nothing stands but what the processes of this start write.

    ``torchrun`` keeps its store when it starts all processes again. One that comes early would find the addresses of
    those that have died, and be refused the connection or wait for it in vain. Hence each counts its starts and
    tells which counts it sees, until all see the same. Nobody told this process's new count before it came, so old
    tellings never pass for new ones.

    Args:
        store: what all processes share, with whatever earlier ones left there. None of those may still run.
        rank, world, patience: as in ``join``.

    Raises:
        NphmError: the others did not come in time.
    """
    store.add(f"starts/{rank}", 1)
    told = [f"seen/{other}" for other in range(world)]
    for _ in range(patience // _PAUSE):
        seen = ",".join(str(store.add(f"starts/{other}", 0)) for other in range(world))
        store.set(told[rank], seen)
        if store.check(told) and set(store.multi_get(told)) == {seen.encode()}:
            return dist.PrefixStore(f"starts/{seen}", store)
        time.sleep(_PAUSE.total_seconds())
    why = f"not all {world} came within {patience}"
    raise NphmError(one_line("processes missed each other", f"process {rank}", why, "look at the others' own errors"))


def leave() -> None:
    """Part from the other processes."""
    dist.destroy_process_group()
