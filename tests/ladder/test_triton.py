"""The Triton kernels in the interpreter, against an oracle in extended precision and the reference in the rows' dtype."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ladderkern.testing import assert_within_budget, floats, guarded, poisoned_allocations

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy warns of inf - inf

OPS = torch.ops.ladderkern
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
FORMS = {  # (norm alone, addends, weights)
    "norm": (True, 0, 1),
    "add": (False, 1, 1),
    "three addends": (False, 2, 1),
    "two weights": (False, 1, 2),
    "two weights of x": (False, 0, 2),
}
EACH_FORM = pytest.mark.parametrize("form", FORMS)
FEW = pytest.mark.parametrize("form", ["norm", "three addends", "two weights"])
ROUND = pytest.mark.parametrize("round_sum", [True, False], ids=["rounded", "float32"])
NAN = float("nan")


@pytest.fixture(params=["a row a program", "rows a program", "many blocks"])
def blocks(request, monkeypatch):
    """Few rows here get a program each, and fit into its block; or 4 share one; or their blocks have 64 columns alone."""
    from ladderkern.ladder import kernels

    if request.param == "rows a program":
        monkeypatch.setattr(kernels, "_row_block", lambda *_: 4)
    if request.param == "many blocks":
        small_blocks(monkeypatch)


def small_blocks(monkeypatch):
    from ladderkern.ladder import kernels

    monkeypatch.setattr(kernels, "_blocks", lambda *_: {"BLOCK": 64, "num_warps": 1})
    monkeypatch.setattr(kernels, "_row_block", lambda *_: 4)


def make(rows=5, hidden=150, dtype=F32, form="add", round_sum=True, weight_dtype=None, eps=1e-6):
    """Inputs of a call and of its backward."""
    alone, addends, weights = FORMS[form]
    weight_dtype = weight_dtype or dtype
    common, shape = torch.promote_types(dtype, weight_dtype), (rows, hidden)
    return SimpleNamespace(
        rows=[floats(shape, dtype, seed=i) for i in range(1 + addends)], alone=alone,
        weights=[1 + floats((hidden,), F64, seed=10 + i).to(weight_dtype) for i in range(weights)],
        grads=[floats(shape, common, seed=20 + i) for i in range(weights)], grad_stream=floats(shape, dtype, seed=22),
        options={"eps": eps, "round_sum": round_sum},
    )  # fmt: skip


def inputs(case):
    if case.alone:
        return case.rows[0], case.weights[0]
    update, update2 = (*case.rows[1:], None, None)[:2]
    return case.rows[0], update, update2, case.weights[0], case.weights[1] if len(case.weights) > 1 else None


def forward(case, overload="triton"):
    """(normed of each weight, stream, rstd); the stream of the norm alone is x."""
    if case.alone:
        normed, rstd = getattr(OPS.rms_norm, overload)(*inputs(case), **case.options)
        return [normed], case.rows[0], rstd
    normed, normed2, stream, rstd = getattr(OPS.add_rms_norm, overload)(*inputs(case), **case.options)
    assert normed2.shape == (normed.shape if len(case.weights) > 1 else (0,))
    return [normed, normed2][: len(case.weights)], stream, rstd


def backward(case, stream, rstd, overload="triton"):
    """(grad_x, gradient of each weight)."""
    if case.alone:
        grad_x, grad_weight = getattr(OPS.rms_norm_backward, overload)(case.grads[0], stream, case.weights[0], rstd)
        return grad_x, [grad_weight]
    op = getattr(OPS.add_rms_norm_backward, overload)
    grad_x, *grad_weights = op(*gradients(case), stream, *inputs(case)[3:], rstd)
    assert grad_weights[1].shape == (grad_weights[0].shape if len(case.weights) > 1 else (0,))
    return grad_x, grad_weights[: len(case.weights)]


def gradients(case):
    return case.grads[0], case.grads[1] if len(case.grads) > 1 else case.grads[0].new_empty((0,)), case.grad_stream


def extended(tensor):
    return tensor.double().numpy().astype(np.longdouble)


def double(array):
    return torch.from_numpy(array.astype(np.float64))


def oracle(case, stream, rstd):
    """The formulas in extended precision: (normed of each weight, rstd, grad_x, weight gradients), the last two at ``stream``.

    The forward starts from the rounded stream where sums are rounded, for that is what the convention says.
    """
    s = extended(stream) if case.options["round_sum"] else sum(extended(t) for t in case.rows)
    exact_rstd = 1 / np.sqrt((s * s).mean(axis=1) + np.longdouble(case.options["eps"]))
    normed = [double(extended(weight) * s * exact_rstd[:, None]) for weight in case.weights]
    grads = [extended(grad) for grad in case.grads]
    xhat = extended(stream) * extended(rstd)[:, None]
    scaled = sum(extended(weight) * grad for weight, grad in zip(case.weights, grads, strict=True))
    grad_x = extended(rstd)[:, None] * (scaled - xhat * (scaled * xhat).mean(axis=1, keepdims=True))
    if not case.alone:
        grad_x = grad_x + extended(case.grad_stream)
    return normed, double(exact_rstd), double(grad_x), [double((grad * xhat).sum(axis=0)) for grad in grads]


def assert_right(case):
    """Both passes within the budget, and no element unwritten; returns (normed, stream, grad_x, weight gradients)."""
    with poisoned_allocations():
        normed, stream, rstd = forward(case)
        grad_x, grad_weights = backward(case, stream, rstd)
    eager_normed, eager_stream, eager_rstd = forward(case, "reference")
    eager_x, eager_weights = backward(case, stream, rstd, "reference")
    exact = oracle(case, stream, rstd)
    assert torch.equal(stream.nan_to_num(), eager_stream.nan_to_num())
    assert_within_budget(rstd, eager_rstd, exact[1], "rstd")
    assert_within_budget(grad_x, eager_x, exact[2], "grad_x")
    for i in range(len(normed)):
        assert_within_budget(normed[i], eager_normed[i], exact[0][i], f"normed {i}")
        assert_within_budget(grad_weights[i], eager_weights[i], exact[3][i], f"grad_weight {i}")
    return normed, stream, grad_x, grad_weights


@EACH_FORM
@ROUND
@DTYPES
def test_values_and_gradients(dtype, round_sum, form, blocks):
    assert_right(make(dtype=dtype, form=form, round_sum=round_sum))


@FEW
@ROUND
@pytest.mark.parametrize("dtypes", [(BF16, F32), (F16, BF16), (F32, BF16), (F64, F32)], ids=str)
def test_a_weight_of_another_dtype(dtypes, round_sum, form):
    normed, *_ = assert_right(make(dtype=dtypes[0], weight_dtype=dtypes[1], form=form, round_sum=round_sum))
    assert normed[0].dtype == torch.promote_types(*dtypes)


@FEW
@pytest.mark.parametrize("hidden", [1, 2, 63, 64, 65, 129, 1000])
def test_odd_sizes(hidden, form, blocks):
    assert_right(make(3, hidden, BF16, form))


@FEW
@pytest.mark.parametrize("rows", [1, 4, 7, 13])
def test_any_number_of_rows(rows, form, blocks):
    assert_right(make(rows, 70, F32, form))


@FEW
@DTYPES
def test_no_rows(dtype, form):
    _, _, grad_x, grad_weights = assert_right(make(0, 70, dtype, form))
    assert grad_x.shape == (0, 70)
    assert all(grad.eq(0).all() for grad in grad_weights)


@FEW
@ROUND
def test_rows_longer_than_the_longest_block(round_sum, form):
    assert_right(make(2, 17_000, BF16, form, round_sum))


def test_more_partial_sums_than_are_added_at_a_time():
    assert_right(make(130, 3, BF16, "two weights"))


def test_row_blocks_grow_with_the_rows():
    from ladderkern.ladder import kernels

    assert [kernels._row_block(rows, False, 8) for rows in (1, 256, 257, 4096, 10**6)] == [1, 1, 2, 16, 4096]
    assert kernels._row_block(10**6, True, 16) == 64


@FEW
@DTYPES
@pytest.mark.parametrize("offset", [1, 4, 31])
def test_slices_of_a_wider_parent_at_any_offset(offset, dtype, form, monkeypatch):
    small_blocks(monkeypatch)
    case = make(5, 133, dtype, form)

    def sliced(tensor):
        wider = torch.zeros(5, 133 + 37, dtype=tensor.dtype)
        return guarded(wider[:, offset : offset + 133].copy_(tensor))

    memory = [[sliced(t) for t in group] for group in (case.rows, case.grads, [case.grad_stream])]
    case.rows, case.grads, (case.grad_stream,) = ([guard.tensor for guard in group] for group in memory)
    assert case.rows[0].stride() == (170, 1)
    assert_right(case)
    for i, guard in enumerate(guard for group in memory for guard in group):
        guard.assert_untouched(f"input {i}")


@FEW
def test_rows_further_apart_than_32_bits(form):
    case = make(3, 70, F16, form)
    case.rows[0] = torch.empty(2**31 + 200, dtype=F16).as_strided((3, 70), (2**30 + 50, 1)).copy_(case.rows[0])
    assert_right(case)


@FEW
@DTYPES
def test_repeated_rows_and_gradients(dtype, form, blocks):
    case = make(7, 70, dtype, form)
    case.rows[0] = case.rows[0][:1].expand(7, 70)
    case.grads = [grad[:1].expand(7, 70) for grad in case.grads]
    case.grad_stream = torch.zeros(1, 70, dtype=dtype).expand(7, 70)
    assert_right(case)


@FEW
@ROUND
def test_nan_and_infinity_stay_in_their_row(round_sum, form, blocks):
    case = make(5, 70, F16, form, round_sum)
    case.rows[0][1, 69] = NAN
    case.rows[0][3, 5] = float("inf")
    normed, stream, rstd = forward(case)
    grad_x, _ = backward(case, stream, rstd)
    for result in (*normed, grad_x):
        assert result[1].isnan().all()
        assert result[3].isnan().any()
        assert result[[0, 2, 4]].isfinite().all()


@ROUND
def test_sums_beyond_float16(round_sum):
    case = make(2, 70, F16, "three addends", round_sum)
    for rows, sign in zip(case.rows, (1, 1, -1), strict=True):
        rows[0] = sign * 60000.0
    _, stream, _ = forward(case)
    assert stream[0].isinf().all() == round_sum  # x + update is infinite before update2 takes it back
    assert torch.equal(stream, forward(case, "reference")[1])


def test_rows_of_zero_and_eps():
    for eps in (1e-6, 1e-2):
        case = make(4, 70, BF16, "norm", eps=eps)
        case.rows[0][2] = 0.0
        normed, *_ = assert_right(case)
        assert normed[0][2].eq(0).all()


@FEW
@DTYPES
def test_nothing_is_written_beside_the_outputs(dtype, form, monkeypatch):
    from ladderkern.ladder import kernels

    small_blocks(monkeypatch)
    made = []

    class Guarding:
        def __getattr__(self, name):
            return getattr(torch, name)

        def empty(self, shape, **options):
            made.append(guarded(torch.full(shape, NAN, **options)))
            return made[-1].tensor

        def empty_like(self, tensor):
            return self.empty(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(kernels, "torch", Guarding())
    case = make(5, 131, dtype, form)
    normed, stream, rstd = forward(case)
    grad_x, grad_weights = backward(case, stream, rstd)
    assert len(made) == len([*normed, rstd, grad_x, *grad_weights, "partials"]) + (not case.alone)
    assert all(result.isfinite().all() for result in (*normed, stream, rstd, grad_x, *grad_weights))
    for i, guard in enumerate(made):
        guard.assert_untouched(f"output {i}")


@EACH_FORM
def test_autograd_twice_from_one_graph(form):
    case = make(dtype=BF16, form=form)
    leaves = [t.clone().requires_grad_() for t in (*case.rows, *case.weights)]
    case.rows, case.weights = leaves[: len(case.rows)], leaves[len(case.rows) :]
    normed, stream, rstd = forward(case)
    results = [*normed] if case.alone else [*normed, stream]
    assert not rstd.requires_grad
    for seed in (40, 50):
        case.grads = [floats(grad.shape, BF16, seed=seed + i) for i, grad in enumerate(case.grads)]
        case.grad_stream = floats(stream.shape, BF16, seed=seed + 5)
        actual = torch.autograd.grad(results, leaves, [*case.grads, case.grad_stream][: len(results)], retain_graph=True)
        with torch.no_grad():
            grad_x, grad_weights = backward(case, stream, rstd)
        for gradient, expected in zip(actual, [*[grad_x] * len(case.rows), *grad_weights], strict=True):
            assert torch.equal(gradient, expected)


@EACH_FORM
def test_opcheck(form):
    case = make(3, 33, BF16, form)
    _, stream, rstd = forward(case)
    given = tuple(None if t is None else t.clone().requires_grad_() for t in inputs(case))
    if case.alone:
        torch.library.opcheck(OPS.rms_norm.triton, given, case.options)
        torch.library.opcheck(OPS.rms_norm_backward.triton, (case.grads[0], stream, case.weights[0], rstd))
    else:
        torch.library.opcheck(OPS.add_rms_norm.triton, given, case.options)
        torch.library.opcheck(OPS.add_rms_norm_backward.triton, (*gradients(case), stream, *inputs(case)[3:], rstd))


def test_bad_arguments_are_refused_by_name():
    case = make()
    x, update, _, weight, _ = inputs(case)
    with pytest.raises(ValueError, match="update"):
        OPS.add_rms_norm.triton(x, update[:2], None, weight, None, **case.options)
    with pytest.raises(TypeError, match="weight2"):
        OPS.add_rms_norm.triton(x, update, None, weight, weight.bfloat16(), **case.options)
    with pytest.raises(ValueError, match="stride 1"):
        OPS.rms_norm.triton(floats((150, 5)).T, weight, **case.options)
    _, stream, rstd = forward(case)
    with pytest.raises(ValueError, match="grad_stream"):
        OPS.add_rms_norm_backward.triton(*gradients(case)[:2], case.grad_stream[:2], stream, weight, None, rstd)
