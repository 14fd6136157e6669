"""The token discrepancy loss as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .loss import token_discrepancy_loss
from .rows import check_options
from .table import DistanceTable


class TokenDiscrepancyLoss(nn.Module):
    """:func:`ladderkern.token_discrepancy_loss` with its table.

    The table is a non-persistent buffer: it moves with the module, stays out of ``state_dict``, and keeps its dtype whatever
    the module is cast to. (DistributedDataParallel broadcasts all buffers of what it wraps in each forward: keep this module
    outside of it, or pass ``broadcast_buffers=False``.)

    Args:
        codebook: [N, d] code vectors, or a :class:`ladderkern.DistanceTable` whose own metric, dtype, order and storage hold.
        metric, dtype, order, storage: of the :class:`ladderkern.DistanceTable`.
        image_start, reduction, normalizer, shift, group: as for :func:`ladderkern.token_discrepancy_loss`. A module with a
            group cannot be pickled, as no process group can.

    Raises:
        TypeError, ValueError: as the table and the function do.

    >>> loss = ladderkern.TokenDiscrepancyLoss(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    >>> loss(torch.arange(6.0).repeat(3, 1), torch.tensor([1, 4, 5]))
    tensor(6.2500)
    """

    def __init__(
        self,
        codebook: Tensor | DistanceTable,
        metric: str = "mse",
        dtype: torch.dtype = torch.float16,
        order: Any = None,
        storage: str = "auto",
        *,
        image_start: int = 4,
        reduction: str = "mean",
        normalizer: float | Tensor | None = None,
        shift: int = 0,
        group: Any = None,
    ) -> None:
        super().__init__()
        made = codebook if isinstance(codebook, DistanceTable) else DistanceTable(codebook, metric, dtype, order, storage)
        self.table = made
        check_options(self.table, reduction, shift, normalizer=normalizer)
        self.image_start, self.reduction, self.shift, self.group = image_start, reduction, shift, group
        self.normalizer = normalizer

    def forward(self, logits: Tensor, labels: Tensor, normalizer: float | Tensor | None = None) -> Tensor:
        """The loss of logits [..., V] and labels [...]; ``normalizer`` goes before the module's own."""
        normalizer = self.normalizer if normalizer is None else normalizer
        options = {"image_start": self.image_start, "reduction": self.reduction, "shift": self.shift, "group": self.group}
        return token_discrepancy_loss(logits, labels, self.table, normalizer=normalizer, **options)

    def extra_repr(self) -> str:
        return f"image_start={self.image_start}, reduction={self.reduction!r}, shift={self.shift}"


torch.serialization.add_safe_globals([TokenDiscrepancyLoss])  # what torch.load(weights_only=True) may make
