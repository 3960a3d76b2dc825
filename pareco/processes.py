"""The processes that train one network together, one for each device; usually there is one."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from multiprocessing import forkserver, resource_tracker
from typing import Any, Literal, TypeVar

import joblib
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from pareco.config import TrainingConfig


@dataclass(frozen=True)
class Share:
    """One of `count` processes, with its `rank` from 0."""

    rank: int = 0
    count: int = 1


_T = TypeVar("_T")
ALONE = Share()
_TIMEOUT = timedelta(minutes=30)  # a search or slow storage may hold one of them up
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def usable_cores() -> int:
    """Return how many CPU cores this process may use, by its affinity and its container's quota."""
    return joblib.cpu_count()


_VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices() -> list[str]:
    """Return the names of the GPUs that this process may use, each as `see_device` takes it."""
    if not torch.accelerator.is_available():
        return []
    count = torch.accelerator.device_count()
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return named[:count] if len(named) >= count else [str(index) for index in range(count)]


def see_device(name: str) -> None:
    """Let this process, which has used no GPU yet, see this one alone."""
    os.environ[_VISIBLE] = name


class ProcessesDiffer(RuntimeError):
    """Processes that should hold the same values hold others: names them and the tensors."""


class _FailedTogether(Exception):
    """An error in what all processes do: this one ends, and its launcher ends the others."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass(frozen=True)
class Processes:
    """One of `share.count` processes, with its device; the one of rank 0 is the main one.

    What the main process alone decides goes through `led`, so that processes never differ.
    """

    device: torch.device
    share: Share = ALONE
    group: Any = None
    """Carries decisions, over gloo on any device, so that a GPU is never waited for."""

    @property
    def main(self) -> bool:
        """Whether this process decides, writes and speaks."""
        return self.share.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.share.count > 1

    @property
    def beforehand(self) -> Processes:
        """This one as it finds what could not run: on the CPU, if workers are to do the runs.

        It then opens no GPU. One of several does the runs itself, and is the same.
        """
        return self if self.several else replace(self, device=torch.device("cpu"))

    def led(
        self, decide: Callable[[], _T], measure: Callable[[Any], Any] = lambda request: None
    ) -> _T:
        """Return, in every process, what `decide` returns in the main one; raise what it raises.

        Where `decide` calls `together(measure, request)`, the others run `measure(request)` too.
        """
        if not self.several:
            return decide()
        if not self.main:
            return self._followed(measure)
        try:
            result = decide()
        except _FailedTogether as error:  # the others may have failed too, and wait for nothing
            raise error.cause from error
        except Exception as error:
            self._broadcast(("raised", error))
            raise
        self._broadcast(("result", result))
        return result

    def together(self, measure: Callable[[Any], _T], request: Any) -> _T:
        """Run `measure(request)` in all processes, from within `led`; return it in the main one."""
        if not self.several:
            return measure(request)
        self._broadcast(("request", request))
        try:
            return measure(request)
        except Exception as error:
            raise _FailedTogether(error) from error

    def _followed(self, measure: Callable[[Any], Any]) -> Any:
        while True:
            kind, content = self._broadcast(None)
            if kind == "raised":
                raise content
            if kind == "result":
                return content
            measure(content)

    def _broadcast(self, message: Any) -> Any:
        messages = [message]
        dist.broadcast_object_list(messages, src=0, group=self.group)
        return messages[0]

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over processes of a tensor, in double precision, on the CPU."""
        summed = values.detach().to("cpu", torch.double, copy=True)  # reduced in place
        if self.several:
            dist.all_reduce(summed, group=self.group)
        return summed

    def average_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Average gradients over processes in place, in one reduction.

        Nothing waits for an accelerator.
        """
        if not self.several:
            return
        parts = [gradient.reshape(-1).float() for gradient in gradients]
        joined = torch.cat(parts)
        dist.all_reduce(joined)
        averages = joined.split([len(part) for part in parts])
        for gradient, average in zip(gradients, averages, strict=True):
            gradient.copy_(average.view_as(gradient) / self.share.count)

    def gathered(self, values: Tensor) -> Tensor:
        """Return the tensors of all processes, stacked; gradients flow to all of them.

        One collective call, and one more for the gradient; none where there is one process.
        """
        if not self.several:
            return values[None]
        return _Gathered.apply(values, self.share)  # type: ignore[return-value]

    def everyones(self, value: _T) -> list[_T]:
        """Return the values of all processes, which call this alike, by their ranks."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.share.count
        dist.all_gather_object(values, value, group=self.group)
        return values

    def alike(self, value: _T) -> list[_T]:
        """Return a value that is the same in all processes, once for each; nothing is sent."""
        return [value] * self.share.count

    def check_agreement(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `ProcessesDiffer` unless all hold the same bytes."""
        if not self.several:
            return
        ours = {name: _digest(tensor) for name, tensor in tensors.items()}
        theirs = self.led(lambda: ours)
        differing = [name for name in theirs if ours.get(name) != theirs[name]]
        found = self.everyones(differing)
        if not any(found):
            return
        said = [
            f"process {rank} in {len(names)} of {len(theirs)} tensors, {names[0]} the first"
            for rank, names in enumerate(found)
            if names
        ]
        raise ProcessesDiffer(
            f"the weights differ between processes: from those of process 0 {'; '.join(said)}. "
            "Nothing is saved of them: the same command goes on from the checkpoint before"
        )

    def autocast(self, precision: Literal["fp32", "bf16", "fp16"]) -> AbstractContextManager[Any]:
        """Return a context in which forward passes compute in this precision."""
        dtype = _DTYPES[precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)


def set_arithmetic(training: TrainingConfig) -> None:
    """Let this process compute as the recipe says: by so many CPU threads, with TF32 or without."""
    torch.set_num_threads(training.cpu_threads)
    torch.backends.cuda.matmul.allow_tf32 = training.tf32
    torch.backends.cudnn.allow_tf32 = training.tf32


def tf32_in_use(device: torch.device) -> bool:
    """Return whether convolutions in fp32 compute in TF32 there: it is let, and the GPU has it."""
    allowed = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return allowed and torch.cuda.is_tf32_supported()


def _digest(tensor: Tensor) -> str:
    """Return a checksum of a tensor's values, bit for bit."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(values.numpy().data, digest_size=8).hexdigest()


class _Gathered(torch.autograd.Function):
    """The tensors of all processes, stacked. (torch has no such function that is public.)"""

    @staticmethod
    def forward(ctx: Any, values: Tensor, share: Share) -> Tensor:
        ctx.share = share
        gathered = values.new_empty(share.count, *values.shape)
        dist.all_gather(list(gathered), values.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].clone()
        dist.all_reduce(summed)
        return summed[ctx.share.rank], None


@cache
def joined_processes(device: Literal["auto", "cpu"]) -> Processes:
    """Return this process among those that `torchrun` or `accelerate launch` has started.

    `auto` takes an accelerator where there is one. LOCAL_WORLD_SIZE then tells, by whatever
    launcher, how many share the cores of this one: all on its machine, unless they are bound.
    Raises `ValueError` where the environment tells of more processes than have joined: each of them
    would do the whole work by itself.
    """
    # Accelerate joins processes without an accelerator only where it is told so.
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    announced, variable = _announced()
    try:
        state = PartialState(cpu=on_cpu, timeout=_TIMEOUT, **_meeting_place(announced))
    except ValueError as error:  # it knows of others, and not where they meet
        if announced == 1:
            raise
        raise ValueError(_unjoined(announced, variable, joined=1)) from error
    if announced > state.num_processes:
        raise ValueError(_unjoined(announced, variable, joined=state.num_processes))
    own_device = torch.device(state.device or "cpu")
    if state.num_processes == 1:
        return Processes(own_device)
    share = Share(state.process_index, state.num_processes)
    group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    joined = Processes(own_device, share, group)
    os.environ["LOCAL_WORLD_SIZE"] = f"{joined.everyones(_own_cores()).count(_own_cores())}"
    return joined


def _own_cores() -> tuple[str, set[int]]:
    """Return this machine's name, and the cores that this process is bound to, where it is told."""
    bound: Callable[[int], set[int]] = getattr(os, "sched_getaffinity", lambda _: set())
    return socket.gethostname(), bound(0)


def _meeting_place(announced: int) -> dict[str, Any]:
    """Return what PartialState needs for several processes of `torchrun` to meet anew.

    In the store that it keeps they would find where those were that it has restarted, and wait.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if start is None or announced == 1:
        return {}
    store, rank, count = next(rendezvous("env://", timeout=_TIMEOUT))
    return {"store": dist.PrefixStore(start, store), "rank": rank, "world_size": count}


# What launchers set: torchrun and accelerate; Open MPI; MPICH and Intel MPI; MVAPICH; srun.
_COUNTS = (
    *("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"),
    "SLURM_STEP_NUM_TASKS",
)


def _announced() -> tuple[int, str]:
    """Return the most processes that the environment tells of, at least 1, and the variable."""
    told = {name: os.environ.get(name, "") for name in _COUNTS}
    return max((int(value), name) for name, value in ({"": "1"} | told).items() if value.isdigit())


def _unjoined(count: int, name: str, *, joined: int) -> str:
    return (
        f"{name} tells of {count} processes, but {joined} joined: start them with torchrun "
        "(GPUS=N does) or accelerate launch, so that they train one network together; for runs "
        f"apart from each other unset {name}"
    )


SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""The signals that ask for an end."""


def worker_context(*modules: str) -> Any:
    """Return the context of `multiprocessing` with a fork server, where there is one.

    Workers then share one import of these modules, and of torch, and nothing is forked off a
    process with threads or an accelerator. `SIGNALS` are blocked in the server, which a signal to
    all processes must not end, and in a worker until it hears them. A server that runs stays.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload([*modules])
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")
