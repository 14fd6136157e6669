"""gather_steps, gather_steps_by_token and step_mask against indexing one position after another."""

import pytest
import torch

from ladderkern import prm
from ladderkern.testing import floats, laid_out

STEP, OTHER = 7, 9


def tokens(side="right", B=5, T=23, seed=0):
    """Rows of ids of different length with separators; 0 is padding.  (input_ids [B, T], start of each row's tokens [B])"""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 12, (B, T), generator=generator)
    lengths = torch.tensor([T, 1, T - 3, 9, 12])[:B]
    ids[torch.arange(T) >= lengths[:, None]] = 0
    ids[:, 0] = 3
    if B > 3:
        ids[3][ids[3] == STEP] = 3  # a row without steps
    if side == "left":
        ids = torch.stack([row.roll(T - n) for row, n in zip(ids, lengths.tolist(), strict=True)])
        return ids, T - lengths
    return ids, torch.zeros_like(lengths)


def rows_at(logits, mask):
    """The steps and offsets by definition."""
    steps, offsets = [], [0]
    for row, keep in zip(logits, mask.tolist(), strict=True):
        steps += [x for x, is_step in zip(row, keep, strict=True) if is_step]
        offsets.append(len(steps))
    return torch.stack(steps) if steps else logits.new_empty((0, *logits.shape[2:])), torch.tensor(offsets)


@pytest.mark.parametrize("fixed", [False, True], ids=["counted", "num_steps"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "column_slice", "every_second"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("C", [None, 1, 2, 300])
def test_steps_are_the_rows_that_the_mask_names(C, dtype, layout, fixed):
    mask = tokens()[0] == STEP
    logits = laid_out(floats((5, 23) if C is None else (5, 23, C)).to(dtype), layout)
    steps, offsets = prm.gather_steps(logits, mask, int(mask.sum()) if fixed else None)
    expected, expected_offsets = rows_at(logits, mask)
    assert torch.equal(steps, expected)
    assert torch.equal(offsets, expected_offsets)
    assert offsets.dtype == torch.int64


@pytest.mark.parametrize("fixed", [False, True], ids=["counted", "num_steps"])
@pytest.mark.parametrize("columns", [(4, 250), (250, 4), (0, 1)])
def test_two_columns_of_a_vocabulary(columns, fixed):
    mask = tokens()[0] == STEP
    logits = floats((5, 23, 300))
    num_steps = int(mask.sum()) if fixed else None
    steps, offsets = prm.gather_steps(logits, mask, num_steps, columns=columns)
    expected, expected_offsets = rows_at(logits[..., list(columns)], mask)
    assert torch.equal(steps, expected)
    assert torch.equal(offsets, expected_offsets)


@pytest.mark.parametrize("columns", [None, (2, 0)])
@pytest.mark.parametrize("fixed", [False, True], ids=["counted", "num_steps"])
def test_gradients_go_to_the_steps_alone(columns, fixed):
    mask = tokens()[0] == STEP
    gradients = []
    for gather in (lambda x: prm.gather_steps(x, mask, int(mask.sum()) if fixed else None, columns=columns)[0],
                   lambda x: rows_at(x if columns is None else x[..., list(columns)], mask)[0]):  # fmt: skip
        x = floats((5, 23, 3)).requires_grad_()
        values = gather(x)
        (values * floats(values.shape, seed=4)).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert not gradients[0][~mask].any()


@pytest.mark.parametrize("shape", [(0, 4, 2), (3, 0, 2), (3, 4, 2), (0, 0, 2), (3, 4)])
@pytest.mark.parametrize("num_steps", [None, 0])
def test_no_steps(shape, num_steps):
    logits = torch.zeros(shape, requires_grad=True)
    steps, offsets = prm.gather_steps(logits, torch.zeros(shape[:2], dtype=torch.bool), num_steps)
    assert steps.shape == (0, *shape[2:])
    assert offsets.tolist() == [0] * (shape[0] + 1)
    steps.sum().backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shift", [0, -1])
@pytest.mark.parametrize("step_token_id", [STEP, [STEP], (STEP, OTHER)], ids=str)
def test_steps_are_found_by_token(side, shift, step_token_id):
    ids, _ = tokens(side)
    logits = floats((5, 23, 2))
    wanted = {step_token_id} if isinstance(step_token_id, int) else set(step_token_id)
    expected, expected_offsets = [], [0]
    for b, row in enumerate(ids.tolist()):
        expected += [logits[b, t + shift] for t, token in enumerate(row) if token in wanted and (t > 0 or shift == 0)]
        expected_offsets.append(len(expected))
    steps, offsets = prm.gather_steps_by_token(logits, ids, step_token_id, shift)
    assert torch.equal(steps, torch.stack(expected))
    assert offsets.tolist() == expected_offsets
    again = prm.gather_steps_by_token(logits, ids.int(), step_token_id, shift, num_steps=len(expected), columns=(1, 0))
    assert torch.equal(again[0], steps.flip(1))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shift", [0, -1])
def test_separators_in_the_prompt_are_ignored(side, shift):
    ids, starts = tokens(side)
    prompt = starts + torch.tensor([6, 1, 0, 3, 11])
    mask = prm.step_mask(ids, STEP, shift, ignore_before=prompt)
    for b in range(5):
        wanted = [t + shift for t in range(23) if ids[b, t] == STEP and t >= prompt[b]]
        assert mask[b].nonzero().flatten().tolist() == wanted
    whole = prm.step_mask(ids, STEP, shift)
    assert mask.sum() < whole.sum()
    assert torch.equal(
        prm.step_mask(ids, STEP, shift, ignore_before=8), prm.step_mask(ids, STEP, shift, ignore_before=torch.full((5,), 8))
    )


@pytest.mark.parametrize("fixed", [False, True], ids=["counted", "num_steps"])
@pytest.mark.parametrize("columns", [None, (40, 3)])
def test_packed_tokens_equal_padded_ones(columns, fixed):
    ids, _ = tokens()
    logits = floats((*ids.shape, 50))
    expected = prm.gather_steps_by_token(logits, ids, STEP, columns=columns)
    kept = ids != 0
    cu_seqlens = torch.tensor([0, *kept.sum(1).cumsum(0)], dtype=torch.int32)
    num_steps = int((ids == STEP).sum()) if fixed else None
    actual = prm.gather_steps_by_token(
        logits[kept], ids[kept], STEP, num_steps=num_steps, columns=columns, cu_seqlens=cu_seqlens
    )
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)
    steps, offsets = prm.gather_steps_by_token(logits[0], ids[0], STEP, -1, ignore_before=5)
    mask = prm.step_mask(ids[:1], STEP, -1, ignore_before=5)
    assert torch.equal(steps, logits[:1][mask])
    assert offsets.tolist() == [0, len(steps)]


def test_a_left_padded_batch_scores_as_the_right_padded_one(backend):
    scores = []
    for side in ("right", "left"):
        ids, _ = tokens(side)
        logits = torch.zeros(5, 23, 2)
        for b, row in enumerate(ids):
            logits[b, row != 0] = floats((int((row != 0).sum()), 2), seed=b)
        scores.append(prm.score_steps(*prm.gather_steps_by_token(logits, ids, STEP)))
    torch.testing.assert_close(*scores, rtol=0, atol=0, equal_nan=True)


LOGITS, MASK, IDS = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), torch.tensor([[1, 7, 7], [7, 1, 0]])
BAD = [
    ("mask", TypeError, lambda: prm.gather_steps(LOGITS, MASK.long())),
    ("mask", ValueError, lambda: prm.gather_steps(LOGITS, MASK[None])),
    ("logits", ValueError, lambda: prm.gather_steps(LOGITS, MASK.view(-1))),
    ("cu_seqlens", ValueError, lambda: prm.gather_steps(LOGITS, MASK, cu_seqlens=torch.tensor([0, 3]))),
    ("cu_seqlens", ValueError, lambda: prm.gather_steps(LOGITS[0], MASK[0], cu_seqlens=torch.tensor([0, 2]))),
    ("cu_seqlens", ValueError, lambda: prm.gather_steps(LOGITS[0], MASK[0], cu_seqlens=torch.tensor([0, 2, 1, 3]))),
    ("cu_seqlens", ValueError, lambda: prm.gather_steps(LOGITS[0], MASK[0], cu_seqlens=torch.tensor(3))),
    ("cu_seqlens", TypeError, lambda: prm.gather_steps(LOGITS[0], MASK[0], cu_seqlens=torch.tensor([0.0, 3.0]))),
    ("mask", ValueError, lambda: prm.gather_steps(LOGITS, MASK.to("meta"))),
    ("logits", ValueError, lambda: prm.gather_steps(LOGITS, MASK[:, :2])),
    ("logits", ValueError, lambda: prm.gather_steps(LOGITS[..., None], MASK)),
    ("logits", TypeError, lambda: prm.gather_steps(LOGITS.long(), MASK)),
    ("num_steps", ValueError, lambda: prm.gather_steps(LOGITS, MASK, 5)),
    ("num_steps", ValueError, lambda: prm.gather_steps(LOGITS, MASK, 7)),
    ("columns", ValueError, lambda: prm.gather_steps(LOGITS, MASK, columns=(0, 4))),
    ("columns", ValueError, lambda: prm.gather_steps(LOGITS, MASK, columns=(-1, 0))),
    ("columns", ValueError, lambda: prm.gather_steps(LOGITS, MASK, columns=(1, 1))),
    ("columns", ValueError, lambda: prm.gather_steps(LOGITS, MASK, columns=(1, 2, 3))),
    ("columns", ValueError, lambda: prm.gather_steps(LOGITS[..., 0], MASK, columns=(0, 1))),
    ("input_ids", TypeError, lambda: prm.gather_steps_by_token(LOGITS, IDS.float(), 7)),
    ("input_ids", ValueError, lambda: prm.gather_steps_by_token(LOGITS, IDS[None], 7)),
    ("logits", ValueError, lambda: prm.gather_steps_by_token(LOGITS, IDS[:1], 7)),
    ("step_token_id", ValueError, lambda: prm.gather_steps_by_token(LOGITS, IDS, [])),
    ("shift", ValueError, lambda: prm.gather_steps_by_token(LOGITS, IDS, 7, 1)),
    ("shift", ValueError, lambda: prm.gather_steps_by_token(LOGITS, IDS, 7, -1)),  # row 1 starts with one
    ("ignore_before", TypeError, lambda: prm.step_mask(IDS, 7, ignore_before=torch.zeros(2))),
    ("ignore_before", ValueError, lambda: prm.step_mask(IDS, 7, ignore_before=torch.zeros(3, dtype=torch.int64))),
    (
        "ignore_before",
        ValueError,
        lambda: prm.step_mask(IDS, 7, ignore_before=torch.zeros(2, dtype=torch.int64, device="meta")),
    ),
]


@pytest.mark.parametrize(("name", "error", "call"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(name, error, call):
    with pytest.raises(error, match=f"^{name} "):
        call()
