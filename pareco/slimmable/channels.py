"""Channel counts as the tracer sees them: unknowns that are unified."""

from __future__ import annotations


class Variable:
    """An unknown channel count, unified with others that must agree (union-find).

    `size` is the count at full width, `producers` how many calls of convolutions and linear layers
    put it out, `pooled_only` whether all of these see globally pooled features.
    """

    def __init__(self, size: int, positions: int = 1, *, fixed: bool = False) -> None:
        """Start a variable of its own."""
        self.size = size
        self.positions = positions
        self.fixed = fixed
        self.producers = 0
        self.pooled_only = True
        self._parent: Variable | None = None

    @property
    def root(self) -> Variable:
        """The variable that stands for all those unified with this one."""
        node = self
        while node._parent is not None:
            node = node._parent
        return node

    def unify(self, other: Variable) -> None:
        """Make the two variables one. Raises `ValueError` if their sizes differ."""
        first, second = self.root, other.root
        if first is second:
            return
        if first.size != second.size:
            raise ValueError(f"{first.size} and {second.size} channels cannot be tied")
        second._parent = first
        first.fixed |= second.fixed
        first.producers += second.producers
        first.pooled_only &= second.pooled_only
        first.positions = max(first.positions, second.positions)
