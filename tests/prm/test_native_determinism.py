"""The native ops give the same bits in every CPU tier, for any number of threads, and wherever a response lies."""

from collections import deque
from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F

from ladderkern.prm import ops
from ladderkern.testing import fingerprint_of, floats

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
KINDS = {  # columns, weights, probabilities
    "scalar": (1, None, False),
    "two": (2, None, False),
    "four": (4, None, False),
    "weights": (3, (0.0, 0.3, 1.0), False),
    "probabilities": (1, None, True),
}


def lengths(count):
    """Mostly short responses, some empty, a few that span blocks."""
    return [(7 * i) % 13 if i % 97 else 700 + i for i in range(count)]


def results(steps, scores, mask=None, weights=None, probabilities=False):
    """What both ops return for responses of so many ``steps`` (rows, with a mask)."""
    W = torch.float64 if scores.dtype == torch.float64 else torch.float32
    offsets = torch.tensor([0, *accumulate(steps)])
    options = {"positive": 0, "threshold": 0.4, "strict": False, "probabilities": probabilities}
    weights = None if weights is None else torch.tensor(weights, dtype=W)
    inputs = (scores, offsets, mask, weights)
    outputs = ops.PRM_SCORES.default(*inputs, **options)
    grads = [floats(t.shape, W, seed=7).abs() for t in outputs[:2]]
    return (*outputs, ops.PRM_SCORES_BACKWARD.default(*grads, *inputs, *outputs[:3], **options))


def cases():
    for dtype in FLOATS:
        for columns, weights, probabilities in KINDS.values():
            for masked in (False, True):
                steps = lengths(900)
                scores = floats((sum(steps), columns), torch.float64, seed=1) * 4
                scores = (torch.sigmoid(scores) if probabilities else scores).to(dtype)
                mask = floats((sum(steps),), seed=2) > 0 if masked else None
                yield steps, scores, mask, weights, probabilities


def fingerprint():
    """SHA-256 of all that the ops return over dtypes, kinds of scores and masks."""
    return fingerprint_of(t for case in cases() for t in results(*case))


def test_results_do_not_depend_on_the_number_of_threads(native, assert_same_for_threads):
    assert_same_for_threads(fingerprint, 1, 2, 3, 7)


def test_every_cpu_tier_gives_the_same_bits(tier, fingerprint_of_tier):
    in_use, bits = fingerprint_of_tier(tier)
    assert in_use == tier
    assert bits == fingerprint_of_tier(None)[1]


@pytest.mark.parametrize("masked", [False, True], ids=["packed", "masked"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_equal_responses_get_equal_bits_wherever_they_lie(native, thread_count, dtype, kind, masked):
    columns, weights, probabilities = KINDS[kind]
    thread_count(2)
    length, copies = 23, 700
    one = floats((length, columns), torch.float64, seed=3) * 4
    one = torch.sigmoid(one) if probabilities else one
    between = [i % 18 for i in range(copies)]  # rows between the copies: every place in a vector, many in a block
    scores, steps, starts, kept = [], [], [], []
    for gap in between:
        starts.append(sum(steps))
        steps += [length, gap]
        scores += [one, torch.full((gap, columns), 0.25, dtype=torch.float64)]
        kept += [torch.arange(length) % 5 != 2, torch.arange(gap) % 3 == 0]
    mask = torch.cat(kept) if masked else None
    per_step, responses, indices, min_is_last, _ = results(steps, torch.cat(scores).to(dtype), mask, weights, probabilities)
    assert sum(steps) > 2 * 4096, "too few steps for two threads"
    for packed in (responses, indices, min_is_last[None]):
        copied = packed[:, ::2].contiguous()
        assert torch.equal(copied, copied[:, :1].expand_as(copied))
    rows = (torch.tensor(starts)[:, None] + torch.arange(length)).flatten()
    copied = per_step[:, rows].view(3, copies, length).nan_to_num(nan=-7.0)
    assert torch.equal(copied, copied[:, :1].expand_as(copied))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_go_on_step_by_step_in_float64(native, dtype, kind):
    columns, weights, probabilities = KINDS[kind]
    scores = floats((100_000 + 1500, columns), torch.float64, seed=5) * 4
    scores = (torch.sigmoid(scores) if probabilities else scores).to(dtype)
    steps = [100_000, 1, 2, 0, 497, 1000]
    per_step, responses, *_ = results(steps, scores, None, weights, probabilities)
    for r, (start, end) in enumerate(pairwise(accumulate(steps, initial=0))):
        if start == end:
            continue
        margin, prob, log_prob = (deque(accumulate(values[start:end].tolist()), 1)[0] for values in per_step)
        expected = {"mean": prob / (end - start), "log_product": log_prob, "mean_margin": margin / (end - start)}
        for name, value in expected.items():
            assert responses[ops.RESPONSES.index(name), r] == torch.tensor(value, dtype=dtype), name


def test_a_response_alone_has_the_bits_that_it_has_among_others(native):
    for steps, scores, mask, weights, probabilities in cases():
        bounds = F.pad(torch.tensor(steps).cumsum(0), (1, 0)).tolist()
        whole = results(steps, scores, mask, weights, probabilities)
        for r in (1, 97, 388, 899):
            rows = slice(bounds[r], bounds[r + 1])
            alone = results(steps[r : r + 1], scores[rows], None if mask is None else mask[rows], weights, probabilities)
            for part, all_of_it in zip(alone[:3], whole[:3], strict=True):
                expected = all_of_it[:, rows] if all_of_it is whole[0] else all_of_it[:, r : r + 1]
                assert torch.equal(part.view(torch.uint8), expected.contiguous().view(torch.uint8))
