"""What stands for CUDA graphs on a CPU: operations that are recorded, and done again in place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pareco.training.step import Outputs


class Tape:
    """Records every operation of some work with the very tensors that it reads and writes.

    As on a GPU, recording does nothing, and a replay is of fixed addresses alone: no Python is run,
    and what was recorded of one tensor is never read from another one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.recorded, self.replayed = device, 0, 0

    def step(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        self.recorded += 1
        operations = _Operations()
        with torch.random.fork_rng(devices=[]), operations:
            outputs = work()
        with torch.no_grad():
            for tensor, value in operations.found.values():
                tensor.copy_(value)

        def replay() -> None:
            self.replayed += 1
            with torch.no_grad():
                operations.again()

        return replay, outputs


class _Operations(TorchDispatchMode):
    """Does operations and notes them, and the values before of all tensors that they came upon."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.found: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {_address(each): each for each in _tensors((args, kwargs))}
        for address, each in given.items():
            if address not in self.made and address not in self.found:
                whole = torch.empty(0, dtype=each.dtype).set_(each.untyped_storage())
                self.found[address] = whole, whole.clone()
        result = func(*args, **kwargs)
        results = _tensors(result)
        self.made |= {_address(each) for each in results} - self.found.keys()
        self.done.append((func, args, kwargs, results))
        return result

    def again(self) -> None:
        for func, args, kwargs, results in self.done:
            for old, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
