"""Hugging Face's Chameleon, which masks the very logits that the loss is about."""

import math
import warnings

import pytest
import torch

import ladderkern
from ladderkern.discrepancy import chameleon_hidden, chameleon_logits
from ladderkern.testing import assert_within_budget, floats

N, V = 16, 40


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers", reason="the tests of transformers' models need it")
    names = {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 4 + i for i in range(N)}
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **names, "<image>": 4 + N}
    torch.manual_seed(0)
    config = transformers.ChameleonConfig(
        vocab_size=V, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocabulary_map=vocabulary,
        vq_config={"embed_dim": 8, "num_embeddings": N, "latent_channels": 8, "resolution": 16, "base_channels": 32,
                   "channel_multiplier": [1, 1], "num_res_blocks": 1},
    )  # fmt: skip
    return transformers.ChameleonForConditionalGeneration(config)


@pytest.fixture
def batch():
    tokens = torch.randint(4, 4 + N, (2, 9))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@pytest.fixture
def table():
    return ladderkern.DistanceTable(floats((N, 8)))


def test_its_own_logits_warn_once_and_teach_nothing(model, batch, table):
    logits = model(**batch).logits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = ladderkern.token_discrepancy_loss(logits, batch["input_ids"], table, shift=1)
        ladderkern.cross_entropy_with_discrepancy(logits, batch["input_ids"], table, shift=1)
    ours = [w for w in caught if "chameleon_logits" in str(w.message)]
    assert [w.filename for w in ours] == [__file__]
    (gradient,) = torch.autograd.grad(loss, model.lm_head.weight)
    assert (gradient == 0).all()


def test_the_helper_gives_logits_that_train(model, batch, table):
    logits = chameleon_logits(model, **batch)
    masked = model(**batch).logits
    text = [*range(4), *range(4 + N, V)]
    assert torch.equal(logits[..., text], masked[..., text])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = ladderkern.token_discrepancy_loss(logits, batch["input_ids"], table, shift=1)
    (gradient,) = torch.autograd.grad(loss, model.lm_head.weight)
    assert (gradient[4 : 4 + N] != 0).any()
    assert (gradient[text] == 0).all()


def test_the_linear_form_takes_hidden_states_and_head(model, batch, table):
    hidden, weight = chameleon_hidden(model, **batch)
    options = {"shift": 1, "label_smoothing": 0.1}
    loss = ladderkern.linear_cross_entropy_with_discrepancy(hidden, weight, batch["input_ids"], table, **options)
    expected = ladderkern.cross_entropy_with_discrepancy(chameleon_logits(model, **batch), batch["input_ids"], table, **options)
    exact_weight = weight.detach().double().requires_grad_()
    exact = ladderkern.cross_entropy_with_discrepancy(
        hidden.detach().double() @ exact_weight.T, batch["input_ids"], table, **options
    )
    assert_within_budget(loss.detach(), expected.detach(), exact.detach(), "loss")
    gradients = [torch.autograd.grad(value, of)[0] for value, of in ((loss, weight), (expected, weight), (exact, exact_weight))]
    assert_within_budget(*gradients, "gradient")


def test_labels_and_other_models_are_refused(model, batch):
    with pytest.raises(ValueError, match="labels"):
        chameleon_logits(model, **batch, labels=batch["input_ids"])
    with pytest.raises(TypeError, match="lm_head"):
        chameleon_logits(torch.nn.Linear(2, 2), **batch)


@pytest.mark.parametrize("value", [0.0, -math.inf, torch.finfo(torch.float32).min])
def test_one_flat_row_among_many_is_seen(plain, value):
    case = plain.make_case(T=16)
    case.labels[:] = 5
    case.logits[11, 4:65] = value
    with pytest.warns(UserWarning, match="image logits of a row are all"):
        ladderkern.token_discrepancy_loss(case.logits, case.labels, case.table)


def test_no_warning_without_image_rows_or_with_one_code(plain):
    case = plain.make_case()
    case.logits[:, 4:65] = 0.0
    one = ladderkern.DistanceTable(torch.zeros(1, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ladderkern.token_discrepancy_loss(case.logits, torch.full((23,), -100), case.table)
        ladderkern.token_discrepancy_loss(case.logits, torch.full((23,), 4), one)
    assert [str(w.message) for w in caught] == []
