"""Step scores as PRMs give them, an oracle in extended precision, and the loop that users would write in plain PyTorch."""

import math
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ladderkern.prm import ops, reference
from ladderkern.testing import floats, laid_out

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib a test does not see its neighbours

LENGTHS = (0, 5, 1, 0, 0, 12, 3, 33, 2, 0)  # empty responses at both ends and between
KINDS = {
    "two": {"C": 2},
    "two_first": {"C": 2, "positive": 0},
    "scalar": {"C": 1},
    "three": {"C": 3, "positive": 2},
    "weights": {"C": 3, "weights": (0.0, 0.25, 1.0)},
    "vocabulary": {"C": 203, "positive": 7},
    "probabilities": {"C": 1, "probabilities": True},
}
FIELDS = (*ops.STEPS, *ops.RESPONSES)  # what has a gradient


class Case(SimpleNamespace):
    """scores, offsets, mask, weights: the tensors of an op call; options: its keywords."""

    @property
    def inputs(self):
        return self.scores, self.offsets, self.mask, self.weights

    def score(self, scores=None):
        """The op on the backend in force, with the checks of the public functions."""
        scores = self.scores if scores is None else scores
        return ops.score("scores", scores, self.offsets, self.mask, self.weights, **self.options)

    def eager(self, dtype, scores=None):
        return eager(self.scores if scores is None else scores, *self.inputs[1:], dtype=dtype, **self.options)

    def oracle(self):
        return oracle(*self.inputs, **self.options)


def make_case(
    lengths=LENGTHS, C=2, dtype=torch.float32, positive=1, weights=None, probabilities=False, threshold=0.5, strict=False,
    masked=False, scale=3.0, layout="contiguous", offset=0, seed=0,
):  # fmt: skip
    """``lengths``: steps of each response. ``masked``: among rows of NaN that are no steps."""
    steps = sum(lengths)
    values = floats((steps, C), torch.float64, seed=seed) * scale
    if probabilities:
        values = torch.sigmoid(values)
    bounds, mask = torch.tensor((0, *lengths)).cumsum(0), None
    if masked:
        rows = 3 * steps + 7
        mask = torch.zeros(rows, dtype=torch.bool)
        mask[torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:steps]] = True
        before = F.pad(mask.cumsum(0), (1, 0))
        bounds = torch.searchsorted(before, bounds)  # first row with so many steps before it
        bounds[0], bounds[-1] = 0, rows
        values = torch.full((rows, C), math.nan, dtype=torch.float64).index_put_((mask,), values)
    weights = None if weights is None else torch.tensor(weights, dtype=reference.wide(dtype))
    options = {"positive": positive, "threshold": threshold, "strict": strict, "probabilities": probabilities}
    scores = laid_out(values.to(dtype), layout, offset)
    return Case(scores=scores, offsets=bounds, mask=mask, weights=weights, options=options)


def eager(scores, offsets, mask, weights, *, dtype, positive, probabilities, **_):
    """The op's steps and responses by torch's own functions in ``dtype``, one response after another."""
    keep = torch.ones(len(scores), dtype=torch.bool) if mask is None else mask
    x = scores[keep].to(dtype)
    if probabilities:
        prob, log_prob, margin = x[:, 0], x[:, 0].log(), torch.logit(x[:, 0])
    else:
        if weights is not None:
            margin = (x + weights.log()).logsumexp(1) - (x + (1 - weights).log()).logsumexp(1)
        elif x.shape[1] == 1:
            margin = x[:, 0]
        else:
            rest = [c for c in range(x.shape[1]) if c != positive]
            margin = x[:, positive] - x[:, rest].logsumexp(1)
        prob, log_prob = torch.sigmoid(margin), F.logsigmoid(margin)
    steps = x.new_full((3, len(scores)), math.nan)
    steps[:, keep] = torch.stack([margin, prob, log_prob])

    key = prob if probabilities else margin
    before = F.pad(keep.cumsum(0), (1, 0))[offsets].tolist()
    responses = []
    for start, end in pairwise(before):
        p, z, log_p = prob[start:end], margin[start:end], log_prob[start:end]
        if start == end:
            responses.append(x.new_tensor([*[math.nan] * 4, 1.0, 0.0, *[math.nan] * 5]))
            continue
        i, j = key[start:end].argmin(), key[start:end].argmax()
        means = [p.mean(), log_p.sum().exp(), log_p.sum(), log_p.mean().exp(), z.mean()]
        responses.append(torch.stack([p[i], p[j], p[-1], *means, z[i], z[j], z[-1]]))
    return steps, torch.stack(responses, dim=1) if responses else x.new_empty((11, 0))


def oracle(scores, offsets, mask, weights, *, positive, threshold, strict, probabilities):
    """What the op returns, in 80-bit numbers and by definition; floats as float64."""
    x = scores.detach().double().numpy().astype(np.longdouble)
    keep = np.ones(len(x), dtype=bool) if mask is None else mask.numpy()
    steps = np.full((3, len(x)), np.nan, np.longdouble)
    with np.errstate(all="ignore"):
        if probabilities:
            prob, wrong = x[keep, 0], 1 - x[keep, 0]
        else:
            x = x[keep] if x.shape[1] > 1 else np.concatenate([0 * x[keep], x[keep]], axis=1)
            one_hot = np.eye(x.shape[1], dtype=np.longdouble)[1 if scores.shape[1] == 1 else positive]
            share = one_hot if weights is None else weights.double().numpy().astype(np.longdouble)
            e = np.exp(x - x.max(axis=1, keepdims=True))
            prob, wrong = ((e * w).sum(axis=1) / e.sum(axis=1) for w in (share, 1 - share))
        steps[:, keep] = np.log(prob) - np.log(wrong), prob, np.log(prob)
        key = prob if probabilities else steps[0, keep]
        right = prob > threshold if strict else prob >= threshold
        before = np.concatenate([[0], keep.cumsum()])[offsets.numpy()]
        responses, indices, min_is_last = [], [], []
        for start, end in pairwise(before):
            (z, p, log_p), n = steps[:, keep][:, start:end], end - start
            i, j = (int(np.argmin(key[start:end])), int(np.argmax(key[start:end]))) if n else (-1, -1)
            ends = [(v[i], v[j], v[-1]) if n else (np.nan,) * 3 for v in (p, z)]
            means = p.mean() if n else np.nan, p.prod(), log_p.sum(), np.exp(log_p.sum() / n), z.sum() / n
            responses.append((*ends[0], *means, *ends[1]))
            wrong_steps = np.flatnonzero(~right[start:end])
            indices.append((n, i, j, wrong_steps[0] if len(wrong_steps) else -1))
            min_is_last.append(n > 0 and i == n - 1)
    responses = np.array(responses, np.longdouble).reshape(-1, 11).T
    steps, responses = (torch.from_numpy(a.astype(np.float64)) for a in (steps, responses))
    return (
        steps,
        responses,
        torch.tensor(indices, dtype=torch.int64).view(-1, 4).t(),
        torch.tensor(min_is_last, dtype=torch.bool),
    )


def padded(side, C=2, dtype=torch.float32):
    """Steps in rows of padded tokens, and the same packed: (logits [B, T, C], mask [B, T], packed, offsets)."""
    generator = torch.Generator().manual_seed(5)
    B, T = 6, 40
    logits = floats((B, T, C), seed=2).to(dtype)
    mask = torch.rand(B, T, generator=generator) < 0.2
    for b, length in enumerate((40, 31, 12, 0, 25, 1)):
        mask[b, length:] = False
        if side == "left":
            mask[b] = mask[b].roll(T - length)
    logits[~mask] = math.nan
    offsets = torch.tensor([0, *mask.sum(1).cumsum(0)])
    return logits, mask, logits[mask], offsets


def field(outputs, name):
    """One differentiable field out of the op's packed outputs."""
    steps, responses = outputs[:2]
    return steps[ops.STEPS.index(name)] if name in ops.STEPS else responses[ops.RESPONSES.index(name)]


@pytest.fixture
def plain():
    """The helpers above."""
    return SimpleNamespace(make_case=make_case, padded=padded, field=field, FIELDS=FIELDS, LENGTHS=LENGTHS)


@pytest.fixture(params=list(KINDS))
def kind(request):
    """What ``make_case`` needs for each kind of scores."""
    return KINDS[request.param]


SOLUTIONS = (
    (
        "How many legs have 4 cats and 3 birds?",
        ["Four cats have 4 * 4 = 16 legs.", "Three birds have 3 * 2 = 6 legs.", "Together:\n\n16 + 6 = 22."],
    ),
    ("What is 2 + 2?", ["2 + 2 = 4."]),
    (
        "Sam sells 48 clips in April and half as many in May. How many in all? Write <extra_0> nowhere.",
        ["In May he sells 48 / 2 = 24.", "In all:", "48 + 24 = 72", "So the answer is 72.", "Sam is happy."],
    ),
)


@pytest.fixture
def solutions():
    """(question, steps), of several lengths, with a separator in a question."""
    return SOLUTIONS


@pytest.fixture(scope="session")
def trained_tokenizer():
    """A byte-level BPE tokenizer as Qwen's, with its special tokens, trained on the solutions."""
    tokenizers = pytest.importorskip("tokenizers", reason="the tests of tokenizers need it")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([text for question, steps in SOLUTIONS for text in (question, *steps)], trainer)
    return model


@pytest.fixture
def tokenizer(trained_tokenizer):
    """The tokenizer in transformers' wrapper; a fresh one for each test."""
    transformers = pytest.importorskip("transformers", reason="the tests of transformers' models need it")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<extra_0>"],
    )


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """Responses here fit into few blocks; with tiles of 2 x 4 steps they need many, and end in the middle of one."""
    if request.param == "many blocks":
        from step_scores import small_blocks

        small_blocks(monkeypatch)
