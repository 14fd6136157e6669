"""The distances between the codes of an image tokenizer, prepared once for the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import reference
from .distances import Codes, centre, distance_table, largest_distance, power_of_two_scale
from .ops import TABLES, names
from .reference import METRICS, TABLE

STORAGES = ("auto", "table", "codebook")
LARGEST_TABLE = 32768  # codes; above it a float16 table takes 2 GiB and more
SMALLEST_DIMENSION = 16  # up to it, a GPU computes a distance about as fast as it reads one; a CPU takes longer


class DistanceTable(nn.Module):
    """What the loss of a wrong token is: the distance of its code to the right one's.

    Holds either all N x N distances, centred and scaled, or the codebook from which a kernel computes them as it goes. Both
    give the same losses. A module without parameters whose one buffer is not persistent: ``.to(device)`` moves it,
    ``state_dict`` leaves it out, and no ``.to(dtype)``, ``.half()`` or ``.bfloat16()`` changes its dtype.

    Args:
        codebook: code vectors of the tokenizer, [N, d], floating point. Read once and without gradient (it is detached: the
            loss trains the model that predicts tokens, not the tokenizer).
        metric: ``"mse"`` (the paper: squared distance / d), ``"sqeuclidean"`` or ``"euclidean"`` (the published code).
        dtype: of the stored distances: float16, bfloat16, float32 or float64. Stored is (D - offset) / scale with offset
            about the mean distance and scale a power of two: distances concentrate around their mean, so that centred
            float16 keeps gradients to about 2e-4 where the published bfloat16 table loses 4e-2. The diagonal is exactly 0.
            Storage "codebook" is float32, whatever this says.
        order: ``order[column] = code``: image column c of the logits stands for row ``order[c]`` of the codebook; a permutation
            of 0..N-1 (sequence or integer tensor, [N]). Applied here, once. None: columns are in codebook order.
        storage: ``"table"``, ``"codebook"``, or ``"auto"``: the codebook if N > 32768 (the table would not fit) or d <= 16
            (no table to hold; about as fast as reading it on a GPU by arithmetic, while a CPU forward measured 3 to 6 times
            slower at d = 4 to 16: ask for ``"table"`` there), else the table.

    Raises:
        TypeError: codebook or order of a wrong dtype.
        ValueError: an unknown metric, dtype or storage; a codebook that is not [N, d] with N, d >= 1, is not finite, or whose
            distances overflow float32; an order that is no permutation. (Values are read: building a table synchronises.)

    Building takes blocks: at most 64 MB beyond the table. Source: Li et al. 2025 (MVoT, arXiv 2501.07542), section 3.

    >>> DistanceTable(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), metric="euclidean")(torch.tensor([1]))
    tensor([[5., 0.]])
    """

    data: Tensor

    def __init__(
        self,
        codebook: Tensor,
        metric: str = "mse",
        dtype: torch.dtype = torch.float16,
        order: Any = None,
        storage: str = "auto",
    ) -> None:
        super().__init__()
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        if dtype not in TABLES:
            raise ValueError(f"dtype must be one of {names(TABLES)}, got {dtype}")
        if storage not in STORAGES:
            raise ValueError(f"storage must be one of {', '.join(STORAGES)}, got {storage!r}")
        codes = Codes(codebook, order)
        self.num_codes, self.code_dim = codes.shape
        if storage == "auto":
            storage = "codebook" if self.num_codes > LARGEST_TABLE or self.code_dim <= SMALLEST_DIMENSION else "table"
        self.metric, self.storage = metric, storage
        self.offset, self.scale = 0.0, 1.0
        bound = largest_distance(codes, metric)
        if storage == "table":
            self.scale = power_of_two_scale(bound, dtype)
            self.offset = centre(codes, metric, self.scale, dtype)
            data = distance_table(codes, metric, self.offset, self.scale, dtype)
        else:
            data = codes.float32()
        self.dtype = data.dtype
        self.warned = False  # of logits that give this table nothing to do
        self.register_buffer("data", data, persistent=False)

    @property
    def options(self) -> dict[str, Any]:
        """The keywords metric, offset and scale of ``torch.ops.ladderkern.token_discrepancy`` that say what ``data`` is.

        Raises:
            TypeError: somebody has cast ``data``, which loses what centring won.
        """
        if self.data.dtype != self.dtype:
            raise TypeError(f"table must keep its dtype {self.dtype}, got {self.data.dtype}: exempt its buffer from casts")
        metric = TABLE if self.storage == "table" else METRICS[self.metric]
        return {"metric": metric, "offset": self.offset, "scale": self.scale}

    def forward(self, codes: Tensor) -> Tensor:
        """Distances of codes (image column numbers, [...] int64) to all codes, as the loss sees them.  [..., N] float32

        float64 for a float64 table.
        """
        dtype = reference.wide(self.dtype)
        return reference.distance_rows(codes.reshape(-1), self.data, dtype=dtype, **self.options).view(*codes.shape, -1)

    def extra_repr(self) -> str:
        shape = f"{self.num_codes} codes of dimension {self.code_dim}"
        return f"{shape}, metric={self.metric!r}, storage={self.storage!r}, dtype={self.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistanceTable:
        # fn is shown an empty part: it says where to go, and its cast to another dtype is not followed.
        device = fn(self.data[:0]).device
        self.data = torch.empty_like(self.data, device=device) if self.data.is_meta else self.data.to(device)
        return self


torch.serialization.add_safe_globals([DistanceTable])  # what torch.load(weights_only=True) may make
