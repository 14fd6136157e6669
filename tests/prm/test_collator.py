"""StepCollator: tokens as in the text with separators, labels on these and nowhere else."""

import math

import pytest
import torch

from ladderkern import prm


def features_of(solutions, labels=None):
    features = [{"prompt": question + "\n", "steps": steps} for question, steps in solutions]
    if labels is not None:
        features = [{**feature, "labels": row} for feature, row in zip(features, labels, strict=True)]
    return features


LABELS = [[1, 0, 1], [True], [1, None, 0, -100, 1]]
HARD = [1, 0, 1, 1, 1, -100, 0, -100, 1]


def rows_of(batch, tensor):
    """Without padding."""
    return [row[mask == 1].tolist() for row, mask in zip(batch[tensor], batch["attention_mask"], strict=True)]


@pytest.fixture(params=["left", "right"])
def padded_tokenizer(tokenizer, request):
    tokenizer.padding_side = request.param
    return tokenizer


def test_tokens_are_those_of_the_text_with_separators_in_it(padded_tokenizer, solutions):
    batch = prm.StepCollator(padded_tokenizer)(features_of(solutions))
    texts = [question + "\n" + "".join(step + "<extra_0>" for step in steps) for question, steps in solutions]
    expected = padded_tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


def test_labels_are_on_the_separators_and_nowhere_else(padded_tokenizer, solutions):
    batch = prm.StepCollator(padded_tokenizer, return_step_mask=True)(features_of(solutions, LABELS))
    labels, steps = batch["labels"], batch["step_mask"]
    assert labels.dtype == torch.int64
    assert labels[steps].tolist() == HARD
    assert (labels[~steps] == -100).all()
    separator = padded_tokenizer.convert_tokens_to_ids("<extra_0>")
    assert (batch["input_ids"][steps] == separator).all()
    assert (batch["input_ids"] == separator).sum() == steps.sum() + 1  # the one in a question is no step
    assert steps.sum(dim=1).tolist() == [3, 1, 5]


def test_soft_labels(tokenizer, solutions):
    labels = [[0.125, 1, 0.5], [None], [1.0, 0, 0.25, 0.5, 0]]
    batch = prm.StepCollator(tokenizer, soft=True, return_step_mask=True)(features_of(solutions, labels))
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"][batch["step_mask"]].tolist() == [0.125, 1, 0.5, -100, 1, 0, 0.25, 0.5, 0]


def test_dropping_after_the_first_error_is_what_the_loss_drops(padded_tokenizer, solutions):
    features = features_of(solutions, LABELS)
    batch = prm.StepCollator(padded_tokenizer, return_step_mask=True)(features)
    dropped = prm.StepCollator(padded_tokenizer, drop_after_first_error=True)(features)
    offsets = torch.tensor([0, 3, 4, 9])
    packed = batch["labels"][batch["step_mask"]]
    assert torch.equal(dropped["labels"][batch["step_mask"]], prm.drop_after_first_error(packed, offsets))
    assert features[0]["labels"] == [1, 0, 1]
    logits = torch.randn(*batch["labels"].shape, 2)
    loss = prm.step_loss(logits, batch["labels"], drop_after_first_error=True)
    assert torch.equal(loss, prm.step_loss(logits, dropped["labels"]))


def test_a_separator_by_id_and_a_rounded_length(tokenizer, solutions):
    by_name, by_id = (prm.StepCollator(tokenizer, separator, pad_to_multiple_of=32) for separator in ("<extra_0>", 3))
    assert tokenizer.convert_tokens_to_ids("<extra_0>") == 3
    batch = by_name(features_of(solutions, LABELS))
    assert batch["input_ids"].shape[1] % 32 == 0
    assert all(torch.equal(tensor, by_id(features_of(solutions, LABELS))[name]) for name, tensor in batch.items())


def test_a_start_token_comes_once(tokenizer, solutions):
    tokenizer.bos_token = "<|im_start|>"
    plain, rendered = features_of(solutions), features_of(solutions)
    for feature in rendered:
        feature["prompt"] = "<|im_start|>" + feature["prompt"]
    batches = [prm.StepCollator(tokenizer)(features) for features in (plain, rendered)]
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert all(row.count(1) == 1 and row[0] == 1 for row in rows_of(batches[0], "input_ids"))


def test_steps_cut_off_are_lost_with_a_warning(padded_tokenizer, solutions):
    whole = prm.StepCollator(padded_tokenizer, return_step_mask=True)(features_of(solutions, LABELS))
    collator = prm.StepCollator(padded_tokenizer, max_length=45, return_step_mask=True)
    with pytest.warns(UserWarning, match=r"of 9 steps lie beyond max_length=45"):
        batch = collator(features_of(solutions, LABELS))
    assert batch["input_ids"].shape[1] == 45
    for name in ("input_ids", "labels", "step_mask"):
        assert rows_of(batch, name) == [row[:45] for row in rows_of(whole, name)]
    assert 0 < batch["step_mask"].sum() < 9


def test_a_response_without_steps(tokenizer):
    batch = prm.StepCollator(tokenizer, return_step_mask=True)([{"prompt": "What?", "steps": [], "labels": []}])
    assert not batch["step_mask"].any()
    assert (batch["labels"] == -100).all()
    assert batch["input_ids"].tolist() == tokenizer(["What?"])["input_ids"]


ONE = {"prompt": "What is 2 + 2?", "steps": ["4."], "labels": [1]}
BAD = [
    ("labels", [ONE, {"prompt": "", "steps": ["a", "b"], "labels": [1]}], {}),
    ("labels", [ONE, {"prompt": "", "steps": ["a"]}], {}),
    ("labels", [{**ONE, "labels": [2]}], {}),
    ("labels", [{**ONE, "labels": [0.9]}], {}),
    ("labels", [{**ONE, "labels": [1.5]}], {"soft": True}),
    ("labels", [{**ONE, "labels": [math.nan]}], {"soft": True}),
    ("steps", [{**ONE, "steps": "4."}], {}),
    ("separator", [ONE], {"separator": "<extra_1>"}),
]


@pytest.mark.parametrize(("name", "features", "options"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_features_are_named(tokenizer, name, features, options):
    with pytest.raises(ValueError, match=name):
        prm.StepCollator(tokenizer, **options)(features)


def test_a_tokenizer_without_padding_is_named(tokenizer):
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="tokenizer must have a padding token"):
        prm.StepCollator(tokenizer)
