"""score_hidden, and make_step_rewards against the model card's meaning."""

import math

import pytest
import torch

from ladderkern import prm
from ladderkern.prm import adapters
from ladderkern.testing import assert_within_budget, floats


@pytest.mark.parametrize("head", ["linear", "function"])
def test_hidden_states_are_gathered_before_the_head(backend, head):
    hidden, mask = floats((3, 9, 8)), floats((3, 9), seed=1) > 0.5
    linear = torch.nn.Linear(8, 2)
    rows = []

    def counting(h):
        rows.append(len(h))
        return linear(h)

    s = prm.score_hidden(hidden, mask, linear if head == "linear" else counting, positive=0)
    expected = prm.score_steps(*prm.gather_steps(linear(hidden), mask), positive=0)
    torch.testing.assert_close(s, expected, equal_nan=True)
    assert rows == ([int(mask.sum())] if head == "function" else [])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head", ["linear", "hooked", "function"])
def test_two_columns_of_a_language_model_head(backend, head, bias):
    hidden, mask = floats((3, 9, 8)), floats((3, 9), seed=1) > 0.5
    linear = torch.nn.Linear(8, 50, bias=bias)
    if head == "hooked":
        linear.register_forward_hook(lambda module, args, output: output * 2)
    expected = prm.score_steps(linear(hidden)[mask][:, [41, 7]], prm.gather_steps(hidden, mask)[1])
    s = prm.score_hidden(hidden, mask, linear.__call__ if head == "function" else linear, int(mask.sum()), columns=(41, 7))
    torch.testing.assert_close(s, expected, equal_nan=True)


def card_make_step_rewards(logits, token_masks):
    """What the model card's function means, one step after another."""
    rewards = []
    for row, mask in zip(logits, token_masks, strict=True):
        rewards.append([torch.softmax(x.float(), dim=0)[1].item() for x, is_step in zip(row, mask, strict=True) if is_step])
    return rewards


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("side", ["right", "left"])
def test_make_step_rewards_gives_what_the_model_card_means(plain, backend, dtype, side):
    logits, mask, _, _ = plain.padded(side, dtype=dtype)
    actual, expected = prm.make_step_rewards(logits, mask), card_make_step_rewards(logits, mask)
    assert [len(row) for row in actual] == [len(row) for row in expected]
    flat, wanted = (torch.tensor([p for row in rows for p in row]) for rows in (actual, expected))
    assert isinstance(actual[0][0], float)
    assert_within_budget(flat, wanted, wanted.double())


def test_no_step_is_dropped_where_the_softmax_underflows(backend):
    # In float16 the card's softmax gives (0, 1) for the gap 20, drops the 0 and pairs what is left: [0.953, 0.731, 1.0].
    gaps = torch.tensor([3.0, 20.0, -1.0, 20.0])
    logits = torch.stack([torch.zeros(4), gaps], dim=1).half()[None]
    (rewards,) = prm.make_step_rewards(logits, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(torch.tensor(rewards), torch.sigmoid(gaps))
    logits[0, 2, 1] = -200
    (rewards,) = prm.make_step_rewards(logits, torch.ones(1, 4, dtype=torch.bool))
    assert (len(rewards), rewards[2]) == (4, 0.0)


def test_the_way_of_a_device_gives_the_same(plain, backend):
    logits, mask, _, offsets = plain.padded("left")
    row, token = mask.nonzero()[3].tolist()
    logits[row, token] = torch.tensor([500.0, -500.0])
    for packed in (adapters.packed_probs, adapters.packed_probs_by_one_copy):
        prob, bounds = packed(logits, mask)
        assert torch.equal(bounds, offsets)
        assert prob[3] == 0.0
        torch.testing.assert_close(prob, torch.softmax(logits[mask], dim=1)[:, 1])


def test_make_step_rewards_of_nothing(backend):
    assert prm.make_step_rewards(torch.zeros(0, 5, 2), torch.zeros(0, 5, dtype=torch.bool)) == []
    assert prm.make_step_rewards(torch.zeros(2, 5, 2), torch.zeros(2, 5, dtype=torch.bool)) == [[], []]


LOGITS, MASK = torch.zeros(2, 3, 3), torch.ones(2, 3, dtype=torch.bool)
BAD = [
    ("hidden", ValueError, lambda: prm.score_hidden(LOGITS[0], MASK, torch.nn.Linear(3, 2))),
    ("columns", ValueError, lambda: prm.score_hidden(LOGITS, MASK, torch.nn.Linear(3, 2), columns=(0, 2))),
    ("token_masks", TypeError, lambda: prm.make_step_rewards(LOGITS, MASK.long())),
    ("logits", ValueError, lambda: prm.make_step_rewards(LOGITS, MASK)),
    ("logits", ValueError, lambda: prm.make_step_rewards(torch.full((2, 3, 2), math.nan), MASK)),
]


@pytest.mark.parametrize(("name", "error", "call"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(backend, name, error, call):
    with pytest.raises(error, match=f"^{name} "):
        call()
