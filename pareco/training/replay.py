"""How the passes of a training step are done: one by one, or as CUDA graphs that are replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from pareco.config import TrainingConfig
from pareco.slimmable import SlimmableNet
from pareco.training.interruption import RunError
from pareco.training.step import Outputs
from pareco.widths import Widths

EAGER_STEPS = 3
"""Steps in succession that have the same widths before their pass is recorded, as torch advises."""

Replay = Callable[[], None]


class Recorder(Protocol):
    """What records work on a device. Recorded work reads and writes where it did the first time."""

    def step(self) -> AbstractContextManager[None]:
        """Return a context for all passes of a step, recorded or not."""
        ...

    def record(self, work: Callable[[], Outputs]) -> tuple[Replay, Outputs]:
        """Return what does the work, which is not done yet, and where its outputs will be."""
        ...


class CudaGraphs:
    """torch's CUDA graphs: on a stream of their own, as is their warm-up; in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Let the stream and the current one wait for each other, which the CPU does not."""
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def record(self, work: Callable[[], Outputs]) -> tuple[Replay, Outputs]:
        """Record the work; this alone waits for the device."""
        graph, mode = torch.cuda.CUDAGraph(), "thread_local"  # other threads, as NCCL's, may work
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
            outputs = work()
        return graph.replay, outputs


RECORDERS: Mapping[str, Callable[[torch.device], Recorder]] = MappingProxyType({"cuda": CudaGraphs})
"""By the kind of device."""


def check_replay(config: TrainingConfig, device: torch.device, processes: int) -> None:
    """Raise `ValueError`, naming the field, where CUDA graphs are wanted and cannot be had."""
    if not config.cuda_graphs:
        return
    if device.type not in RECORDERS:
        raise ValueError(
            f"training.cuda_graphs needs an NVIDIA or AMD GPU, and this is {device.type}: leave it "
            "out, which changes no loss"
        )
    if processes > 1 and config.sync_batch_norm:
        raise ValueError(
            f"training.cuda_graphs with {processes} processes needs training.sync_batch_norm False "
            "(--training.no-sync-batch-norm): their batch norms talk in the midst of a pass"
        )


class Passes:
    """Every pass is done anew, and the gradients of every step are new."""

    def __init__(self, net: SlimmableNet) -> None:
        self._net = net

    @contextmanager
    def step(self) -> Iterator[None]:
        """Return a context for all passes of a step."""
        yield

    def run(self, widths: Widths, work: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
        """Return what the work of a pass does with its inputs; the network is at these widths."""
        return work(*inputs)

    def clear(self) -> None:
        """Let go of the gradients."""
        self._net.zero_grad(set_to_none=True)


@dataclass(eq=False)
class _Pass:
    """The work at some widths: how often it was done, and how it is done again."""

    times: int = 0
    replay: Replay | None = None
    outputs: Outputs = ()


class Replays(Passes):
    """The work at widths that stay is recorded, and replayed at the addresses that it then had.

    Inputs are copied to where they lay before, and gradients stay where they are. The work at some
    widths must be the same in every step. What a step has no use for is let go of.
    """

    def __init__(self, net: SlimmableNet, recorder: Recorder) -> None:
        super().__init__(net)
        self._recorder = recorder
        self._places: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}
        self._filled: dict[int, Tensor] = {}
        self._before: dict[Widths, _Pass] = {}
        self._now: dict[Widths, _Pass] = {}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Return a context for all passes of a step."""
        with self._recorder.step():
            yield
        for each in self._net.switches:
            if each not in self._now:  # as without graphs, the optimizer finds no gradient there
                for parameter in self._net.private_weights(each).values():
                    parameter.grad = None
        self._before, self._now = self._now, {}
        self._filled.clear()

    def run(self, widths: Widths, work: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
        """Return what the work of a pass does with its inputs; the network is at these widths."""
        placed = [self._placed(position, each) for position, each in enumerate(inputs)]
        each = self._now[widths] = self._before.get(widths) or _Pass()
        each.times += 1
        if each.times <= EAGER_STEPS:
            return work(*placed)
        if each.replay is None:
            each.replay, each.outputs = self._recorded(lambda: work(*placed))
        else:
            self._net.book_replay(len(inputs[0]))
        each.replay()
        return tuple(output.clone() for output in each.outputs)  # other graphs may write there

    def _placed(self, position: int, given: Tensor) -> Tensor:
        """Return an input at the address where such a one lay in the steps before."""
        place = position, given.shape, given.dtype
        if place not in self._places:
            self._places[place] = torch.empty_like(given)
        placed = self._places[place]
        if self._filled.get(id(placed)) is not given:
            self._filled[id(placed)] = given
            placed.copy_(given)
        return placed

    def _recorded(self, work: Callable[[], Outputs]) -> tuple[Replay, Outputs]:
        try:
            return self._recorder.record(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first: BaseException = error
            while first.__context__ is not None:
                first = first.__context__
            raise RunError(
                "training.cuda_graphs: this network's passes cannot be recorded "
                f"({str(first).partition(chr(10))[0]}): leave it out, under another --name"
            ) from error

    def clear(self) -> None:
        """Set the gradients to zero where they are."""
        gradients = [each.grad for each in self._net.parameters() if each.grad is not None]
        torch._foreach_zero_(gradients)


def passes_of(net: SlimmableNet, config: TrainingConfig, device: torch.device) -> Passes:
    """Return how a network's passes are done on a device, by the configuration."""
    if config.cuda_graphs:
        return Replays(net, RECORDERS[device.type](device))
    return Passes(net)
