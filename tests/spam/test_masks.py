"""Sparse momentum: which elements are drawn, and what happens to the others."""

import math
from itertools import combinations

import pytest
import torch

import ladderkern
from ladderkern.spam import mask
from ladderkern.testing import assert_within_budget, floats

DENSITIES = [n / 16 for n in range(1, 17)]
UNITS = ["element", "row"]


def strata(drawn, unit):
    """The mask as [strata, 16], whatever it was drawn along."""
    lanes = drawn.reshape(drawn.shape[0], -1).t() if unit == "row" else drawn
    return lanes.reshape(-1, 16)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("density", DENSITIES)
def test_each_stratum_draws_exactly_its_share(density, unit):
    drawn = mask((48, 3, 32), density, mask_unit=unit)
    assert drawn.dtype == torch.bool
    assert drawn.shape == (48, 3, 32)
    assert (strata(drawn, unit).sum(dim=1) == 16 * density).all()


def philox_by_hand(counter, seed):
    """Philox4x32-10 on Python integers."""
    (a, b, c, d), k0, k1 = counter, seed % 2**32, seed // 2**32 % 2**32
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ k0, right % 2**32, (left >> 32) ^ d ^ k1, left % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return a, b, c, d


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("chosen", [1, 4, 11])
def test_the_draw_is_pinned_so_that_old_runs_can_be_resumed(chosen, unit):
    seed, index, cycle = 3 - 2**40, 5, 7
    shape = (160, 3) if unit == "row" else (5, 32)
    drawn = strata(mask(shape, chosen / 16, seed=seed, index=index, cycle=cycle, mask_unit=unit), unit)
    ordered = list(combinations(range(16), chosen))
    for stratum in range(10):
        word = philox_by_hand((stratum // 4, 0, cycle, index), seed)[stratum % 4]
        assert tuple(drawn[stratum].nonzero().flatten().tolist()) == ordered[word * len(ordered) >> 32]


def test_a_row_is_drawn_whole():
    drawn = mask((64, 5, 7), 0.5, mask_unit="row").reshape(64, -1)
    assert (drawn.all(dim=1) | ~drawn.any(dim=1)).all()


def test_the_draw_of_rows_does_not_depend_on_their_length():
    short, long = (mask((64, n), 0.25, seed=3, index=2, cycle=1, mask_unit="row")[:, 0] for n in (1, 1000))
    assert torch.equal(short, long)


def test_the_draw_of_elements_goes_by_global_position():
    flat, folded = mask((1, 4096), 0.25, seed=3), mask((8, 4, 128), 0.25, seed=3)
    assert torch.equal(flat.flatten(), folded.flatten())


@pytest.mark.parametrize("unit", UNITS)
def test_a_draw_is_repeated_whatever_the_rng_state(unit):
    first = mask((32, 64), 0.25, seed=5, index=1, cycle=2, mask_unit=unit)
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    assert torch.equal(first, mask((32, 64), 0.25, seed=5, index=1, cycle=2, mask_unit=unit))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": 2**32}, {"seed": -1}, {"index": 1}, {"cycle": 1}], ids=str)
def test_another_seed_index_or_cycle_draws_another_mask(change, unit):
    base = mask((256, 256), 0.5, mask_unit=unit)
    other = mask((256, 256), 0.5, mask_unit=unit, **change)
    same = (strata(base, unit)[: 256 // 16] == strata(other, unit)[: 256 // 16]).double().mean().item()
    # Two independent halves agree in half of the elements; 6 standard deviations of a fair coin over 256 elements.
    assert abs(same - 0.5) < 6 * 0.5 / math.sqrt(256)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", [(), (64,), (0,), (16, 17), (17, 16), (2, 16, 9), (9, 16, 2), (0, 16), (16, 0)], ids=str)
def test_parameters_to_which_density_does_not_apply_are_drawn_whole(shape, unit):
    along = shape[0 if unit == "row" else -1] if len(shape) >= 2 else 1
    assert mask(shape, 0.25, mask_unit=unit).all() == (along % 16 != 0 or 0 in shape)


def chi_square_bound(cells):
    """The mean of chi-square plus 6 standard deviations."""
    freedom = cells - 1
    return freedom + 6 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("chosen", [1, 4, 8, 15])
def test_every_position_is_drawn_equally_often(chosen):
    drawn = strata(mask((16, 65536), chosen / 16, seed=11), "element")
    counts, n, share = drawn.double().sum(dim=0), drawn.shape[0], chosen / 16
    # Sampling without replacement within a stratum: variance n share (1 - share) 16/15 in chi-square's 15 degrees of freedom.
    statistic = ((counts - n * share) ** 2 / (n * share * (1 - share) * 16 / 15)).sum().item()
    assert statistic < chi_square_bound(16)


@pytest.mark.parametrize("chosen", [2, 14])
def test_every_combination_is_drawn_equally_often(chosen):
    drawn = strata(mask((16, 65536), chosen / 16, seed=12), "element")
    codes = (drawn * 2 ** torch.arange(16)).sum(dim=1)
    possible = [sum(2**i for i in c) for c in combinations(range(16), chosen)]
    counts = torch.stack([(codes == code).sum() for code in possible]).double()
    expected = drawn.shape[0] / len(possible)
    assert counts.sum() == drawn.shape[0]
    assert ((counts - expected) ** 2 / expected).sum().item() < chi_square_bound(len(possible))


def test_neighbouring_strata_are_independent():
    first = strata(mask((16, 65536), 1 / 16, seed=13), "element").to(torch.int64).argmax(dim=1)
    pairs = first[:-1] * 16 + first[1:]
    counts = torch.bincount(pairs, minlength=256).double()
    expected = pairs.numel() / 256
    assert ((counts - expected) ** 2 / expected).sum().item() < chi_square_bound(256)


@pytest.mark.parametrize(
    ("option", "value"), [("density", 0.3), ("density", 0), ("density", 1.0625), ("cycle", -1), ("mask_unit", "column")]
)
def test_bad_arguments_are_named(option, value):
    arguments = {"density": 0.5, option: value}
    with pytest.raises(ValueError, match=option):
        mask((16, 16), **arguments)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("density", [1 / 16, 0.25, 11 / 16])
def test_masked_steps_equal_the_arithmetic_on_the_drawn_elements(backend, simulation, spiky_gradients, train, density, unit):
    shape = (32, 3, 48)
    options = {"reset_interval": 9, "warmup_steps": 4, "unclipped_steps": 3, "weight_decay": 0.5, "lr": 0.01}
    params = [torch.nn.Parameter(floats(shape, seed=98)), torch.nn.Parameter(floats(shape, seed=99))]
    optimizer = ladderkern.SPAM(params, density=density, mask_unit=unit, seed=7, **options)

    def drawn(cycle):
        return mask(shape, density, seed=7, index=1, cycle=cycle, mask_unit=unit)

    eager, oracle = (simulation(params[1], dtype, mask=drawn, **options) for dtype in (torch.float32, torch.float64))
    for g in spiky_gradients(20, shape):
        train(optimizer, [[None, g]])
        eager.step(g)
        oracle.step(g)
        assert_within_budget(params[1].detach(), eager.p, oracle.p, f"step {oracle.n}: p")
        for key, e, o in zip(("exp_avg", "exp_avg_sq"), eager.moments(), oracle.moments(), strict=True):
            assert_within_budget(optimizer.state[params[1]][key].flatten(), e, o, f"step {oracle.n}: {key}")


@pytest.mark.parametrize("unit", UNITS)
def test_elements_outside_the_mask_keep_their_value(backend, unit):
    p = torch.nn.Parameter(floats((32, 64), seed=1))
    optimizer = ladderkern.SPAM([p], density=0.25, mask_unit=unit, reset_interval=5, warmup_steps=1)
    for n in range(1, 13):
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        optimizer.step()
        drawn = mask((32, 64), 0.25, cycle=n // 5, mask_unit=unit)  # of cycle 0 as well
        assert torch.equal(before != p, drawn)


def test_elements_outside_the_mask_still_decay(backend):
    p = torch.nn.Parameter(torch.ones(16, 16))
    optimizer = ladderkern.SPAM([p], lr=0.1, weight_decay=0.5, density=0.25)
    p.grad = torch.ones_like(p)
    optimizer.step()
    undrawn = p.detach()[~mask((16, 16), 0.25)]
    assert torch.equal(undrawn, torch.full_like(undrawn, 1 - 0.1 * 0.5))


@pytest.mark.parametrize("unit", UNITS)
def test_moments_hold_the_drawn_elements_alone(backend, unit):
    p = torch.nn.Parameter(floats((32, 2, 48)))
    optimizer = ladderkern.SPAM([p], density=0.25, mask_unit=unit, state_dtype=torch.bfloat16)
    p.grad = torch.ones_like(p)
    optimizer.step()
    shape = (8, 2, 48) if unit == "row" else (32, 2, 12)
    moments = [optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq")]
    assert [tuple(moment.shape) for moment in moments] == [shape] * 2
    # Two bytes a parameter: bfloat16 moments of a quarter of the elements would be 1, float32 ones 2.
    assert sum(moment.untyped_storage().nbytes() for moment in moments) == p.numel()


def test_float32_moments_at_a_quarter_take_two_bytes_a_parameter(backend):
    params = [torch.nn.Parameter(floats((64, 128), dtype)) for dtype in (torch.float32, torch.bfloat16)]
    optimizer = ladderkern.SPAM(params, density=0.25)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = [t.untyped_storage().nbytes() for s in optimizer.state.values() for t in s.values()]
    steps = sum(s["step"].untyped_storage().nbytes() for s in optimizer.state.values())
    assert sum(held) == 2 * sum(p.numel() for p in params) + steps


def test_the_index_counts_over_all_groups_and_gradients_that_are_none(backend):
    params = [torch.nn.Parameter(torch.zeros(16, 16)) for _ in range(4)]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.1}]
    optimizer = ladderkern.SPAM(groups, density=0.5, seed=4)
    params[3].grad = torch.ones(16, 16)
    optimizer.step()
    assert torch.equal(params[3] != 0, mask((16, 16), 0.5, seed=4, index=3))
