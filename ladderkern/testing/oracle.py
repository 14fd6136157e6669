"""The one budget rule by which every backend is judged."""

from __future__ import annotations

import torch
from torch import Tensor


def budget(eager: Tensor, oracle: Tensor) -> float:
    """The largest error that a result may have: twice (the error of plain eager PyTorch + one rounding of the largest value).

    Args:
        eager: what plain PyTorch computes in the dtype of the result that is judged.                              [...]
        oracle: the true values, computed in float64 from the same inputs.                                         [...]

    Returns:
        ``2 * (max |eager - oracle| + eps * max |oracle|)`` with eps of eager's dtype, maxima over the elements that are
        finite in both; 0.0 if there are none.

    Why this rule: users would otherwise run plain PyTorch, so its error in the same dtype is what they accept today, and it
    follows size, dtype and conditioning by itself, as no literal tolerance does. Another order of operations has an error of
    the same size but with another sign and at another element, hence the factor 2. Where PyTorch happens to be exact the
    error alone would forbid any rounding at all, hence one rounding of the largest value.
    """
    _same_shape(eager, oracle, "eager")
    exact = oracle.to(device=eager.device, dtype=torch.float64)
    finite = torch.isfinite(eager) & torch.isfinite(exact)
    if not finite.any():
        return 0.0
    error = (eager.to(torch.float64) - exact)[finite].abs().max().item()
    return 2.0 * (error + torch.finfo(eager.dtype).eps * exact[finite].abs().max().item())


def assert_within_budget(actual: Tensor, eager: Tensor, oracle: Tensor, what: str = "result") -> None:
    """Assert that ``actual`` is as near to ``oracle`` as plain PyTorch is (:func:`budget`), NaN and infinities in place.

    Args:
        actual: the result under test.                                                                             [...]
        eager: plain PyTorch's result in the same dtype.                                                           [...]
        oracle: the float64 result.                                                                                [...]
        what: how to call ``actual`` in the message.

    Raises:
        AssertionError: another dtype or shape than ``eager``; a NaN or an infinity where ``oracle`` (in actual's range) has
            none, or the reverse; an error above the budget. The message names the worst element.
    """
    assert actual.dtype == eager.dtype, f"{what}: dtype {actual.dtype}, eager PyTorch gives {eager.dtype}"
    _same_shape(actual, eager, what)
    allowed = budget(eager, oracle)
    exact = oracle.to(device=actual.device, dtype=torch.float64)
    actual64 = actual.to(torch.float64)
    in_range = exact.to(actual.dtype).to(torch.float64)
    finite = torch.isfinite(in_range)
    kept = torch.where(finite, torch.isfinite(actual64), actual64.eq(in_range) | (actual64.isnan() & in_range.isnan()))
    if not kept.all():
        at = _position(~kept)
        raise AssertionError(f"{what}{list(at)}: {actual64[at].item()} where the oracle has {exact[at].item()}")
    error = torch.where(finite, (actual64 - exact).abs(), 0.0)
    if error.numel() and error.max().item() > allowed:
        at = _position(error == error.max())
        raise AssertionError(
            f"{what}{list(at)}: error {error[at].item():.3e} is over the budget {allowed:.3e} "
            f"(got {actual64[at].item():.9g}, oracle {exact[at].item():.9g}, eager {eager[at].item():.9g})"
        )


def _same_shape(tensor: Tensor, oracle: Tensor, what: str) -> None:
    assert tensor.shape == oracle.shape, f"{what}: shape {tuple(tensor.shape)}, expected {tuple(oracle.shape)}"


def _position(where: Tensor) -> tuple[int, ...]:
    return tuple(where.nonzero()[0].tolist())
