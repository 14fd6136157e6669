"""What stands around each branch of a ladder where nothing overlaps: on one rank, and in graphs that a compiler makes."""

from __future__ import annotations

from torch import Tensor

from .collectives import FinishSum, StartSum, SumGradient


class Local:
    """One rank: outputs are what they are."""

    def __init__(self) -> None:
        self.updates: dict[int, Tensor] = {}

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def enter(self, branch: int, normed: Tensor, stream: int) -> Tensor:
        """What the branch gets for its norm of the stream of that number."""
        return normed

    def launch(self, branch: int, partial: Tensor) -> None:
        """Take the branch's output."""
        self.updates[branch] = partial

    def wait(self, branch: int) -> Tensor:
        """The sum of the branch's output over the ranks; once for each branch."""
        return self.updates.pop(branch)


class Traced(Local):
    """Functional collectives: right in any compiled graph, where the compiler decides what overlaps."""

    def __init__(self, group_name: str) -> None:
        super().__init__()
        self.group_name = group_name

    def enter(self, branch: int, normed: Tensor, stream: int) -> Tensor:
        """As of Local; its gradient is summed over the ranks."""
        return SumGradient.apply(normed, self.group_name)  # type: ignore[no-untyped-call, no-any-return]

    def launch(self, branch: int, partial: Tensor) -> None:
        """As of Local, and start the sum."""
        self.updates[branch] = StartSum.apply(partial, self.group_name)  # type: ignore[no-untyped-call]

    def wait(self, branch: int) -> Tensor:
        """As of Local."""
        return FinishSum.apply(self.updates.pop(branch))  # type: ignore[no-untyped-call, no-any-return]
