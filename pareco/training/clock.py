"""How fast training goes, and how long it waits for images."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")
_LAST_STEPS = 20


class StepClock:
    """Times the steps of training: in all (`seconds`, `waiting_seconds`, `images`) and the last."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.images = 0
        self.seconds = self.waiting_seconds = 0.0
        self._last: deque[tuple[int, float, float]] = deque(maxlen=_LAST_STEPS)
        self._begun = self._waited = 0.0

    def waited_for(self, batches: Iterable[_T]) -> Iterator[_T]:
        """Yield the batches, and note how long each is waited for."""
        iterator, end = iter(batches), object()
        while True:
            self._begun = time.perf_counter()
            batch = next(iterator, end)
            self._waited = time.perf_counter() - self._begun
            if batch is end:
                return
            yield batch  # type: ignore[misc]

    def step_done(self, images: int) -> None:
        """Note that a step with so many images has ended."""
        seconds = time.perf_counter() - self._begun
        self.images += images
        self.seconds += seconds
        self.waiting_seconds += self._waited
        self._last.append((images, seconds, self._waited))

    @property
    def images_per_second(self) -> float:
        """Images a second over the last steps, waiting included."""
        images, seconds, _ = map(sum, zip(*self._last, strict=True))
        return images / seconds

    @property
    def waiting_percent(self) -> float:
        """The part of the last steps, in percent, that was spent waiting for images."""
        _, seconds, waited = map(sum, zip(*self._last, strict=True))
        return 100 * waited / seconds
