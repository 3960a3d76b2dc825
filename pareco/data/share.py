"""The part of every batch that one of several processes takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One of `count` processes, with its `rank` from 0."""

    rank: int = 0
    count: int = 1
