"""Results compared to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def fingerprint_of(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the elements' bits, tensor by tensor in their order, whatever the strides."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
