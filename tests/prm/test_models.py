"""Real architectures with random weights, scored end to end from text: batched as one by one, by every way in."""

import pytest
import torch

from ladderkern import prm

transformers = pytest.importorskip("transformers", reason="the tests of transformers' models need it")
SYSTEM = "<|im_start|>system\nReason step by step.<|im_end|>\n"


class ProcessRewardModel(torch.nn.Module):
    """Shaped as Qwen2ForProcessRewardModel: the decoder, and a head of two linear layers at every token."""

    def __init__(self, config):
        super().__init__()
        H = config.hidden_size
        self.model = transformers.Qwen2Model(config)
        self.score = torch.nn.Sequential(torch.nn.Linear(H, H), torch.nn.ReLU(), torch.nn.Linear(H, 2))

    def hidden(self, **inputs):
        return self.model(**inputs, use_cache=False).last_hidden_state

    def forward(self, **inputs):
        return self.score(self.hidden(**inputs))


class TokenClassifier(torch.nn.Module):
    """transformers' own token classification, whose head is one linear layer."""

    def __init__(self, config):
        super().__init__()
        self.classifier = transformers.Qwen2ForTokenClassification(config)
        self.score = self.classifier.score

    def hidden(self, **inputs):
        return self.classifier.model(**inputs, use_cache=False).last_hidden_state

    def forward(self, **inputs):
        return self.classifier(**inputs, use_cache=False).logits


class LanguageModel(torch.nn.Module):
    """A causal LM of whose vocabulary two columns are read, as Math-Shepherd and RLHFlow do."""

    columns = (13, 11)  # of "wrong" and "right"

    def __init__(self, config):
        super().__init__()
        self.lm = transformers.Qwen2ForCausalLM(config)
        self.score = self.lm.lm_head

    def hidden(self, **inputs):
        return self.lm.model(**inputs, use_cache=False).last_hidden_state

    def forward(self, **inputs):
        return self.lm(**inputs, use_cache=False).logits


@pytest.fixture(params=[ProcessRewardModel, TokenClassifier, LanguageModel])
def model(request, tokenizer):
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=2, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    return request.param(config).eval()


@pytest.fixture
def features(solutions):
    chat = "{}<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return [{"prompt": chat.format(SYSTEM, question), "steps": steps} for question, steps in solutions]


def batch_of(tokenizer, features, side="right"):
    tokenizer.padding_side = side
    batch = prm.StepCollator(tokenizer, return_step_mask=True)(features)
    return batch.pop("step_mask"), batch


def columns_of(model):
    return {"columns": model.columns} if isinstance(model, LanguageModel) else {}


@torch.no_grad()
def scores_of(model, tokenizer, features, side="right"):
    mask, batch = batch_of(tokenizer, features, side)
    logits, offsets = prm.gather_steps(model(**batch), mask, **columns_of(model))
    return prm.score_steps(logits, offsets)


def one_by_one(model, tokenizer, features):
    """Each field of the scores, every response scored alone, unpadded."""
    alone = [scores_of(model, tokenizer, [feature]) for feature in features]
    return prm.StepScores(*(torch.cat(fields) for fields in zip(*alone, strict=True)))


def assert_close(actual, expected):
    for name in prm.StepScores._fields:
        torch.testing.assert_close(
            getattr(actual, name), getattr(expected, name), msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_scores_as_its_responses_one_by_one(backend, model, tokenizer, features, side):
    expected = one_by_one(model, tokenizer, features)
    assert expected.count.tolist() == [3, 1, 5]
    assert expected.prob.std() > 0.05  # a random model that tells steps apart
    assert_close(scores_of(model, tokenizer, features, side), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_way_in_gives_the_same_scores(backend, model, tokenizer, features, side):
    expected = one_by_one(model, tokenizer, features)
    mask, batch = batch_of(tokenizer, features, side)
    with torch.no_grad():
        logits, hidden = model(**batch), model.hidden(**batch)
    columns = columns_of(model)
    separator = tokenizer.convert_tokens_to_ids("<extra_0>")
    assistant = tokenizer.convert_tokens_to_ids("<|im_start|>")
    begins = (batch["input_ids"] == assistant).long().cumsum(1).argmax(1)  # of the last such token
    by_token = prm.gather_steps_by_token(logits, batch["input_ids"], separator, ignore_before=begins, **columns)
    assert_close(prm.score_steps(*by_token), expected)
    assert_close(prm.score_steps(*prm.gather_steps(logits, mask, int(mask.sum()), **columns)), expected)
    assert_close(prm.score_hidden(hidden, mask, model.score, **columns), expected)
    pair = logits[..., list(columns["columns"])] if columns else logits
    padded = prm.score_masked(pair, mask)
    assert padded.prob.isnan().equal(~mask)
    assert_close(padded._replace(**{name: getattr(padded, name)[mask] for name in ("margin", "prob", "log_prob")}), expected)


@pytest.mark.parametrize("model", [ProcessRewardModel, TokenClassifier], indirect=True)  # two classes, as the model card's
def test_make_step_rewards_agrees(backend, tokenizer, model, features):
    mask, batch = batch_of(tokenizer, features)
    with torch.no_grad():
        rewards = prm.make_step_rewards(model(**batch), mask)
    expected = one_by_one(model, tokenizer, features)
    assert [len(row) for row in rewards] == expected.count.tolist()
    torch.testing.assert_close(torch.tensor([reward for row in rewards for reward in row]), expected.prob)


def test_text_in_and_the_best_of_n_out(backend, tokenizer, model, features):
    responses = [{**feature, "steps": steps} for feature in features for steps in (feature["steps"], feature["steps"][::-1])]
    scores = scores_of(model, tokenizer, responses)
    sizes = torch.tensor([2, 2, 2])
    for name, best in prm.best_of_n_by_strategy(scores, sizes).items():
        values = getattr(scores, name).view(3, 2)
        assert torch.equal(best, (values[:, 1] > values[:, 0]).long()), name


def test_the_trainer_learns_labels_through_the_collator(tokenizer, features, tmp_path):
    pytest.importorskip("accelerate", reason="its integration is tested")
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_labels=2, pad_token_id=0,
    )  # fmt: skip
    classifier = transformers.Qwen2ForTokenClassification(config)
    data = [{**feature, "labels": [1 - i % 2 for i in range(len(feature["steps"]))]} for feature in features]

    class StepTrainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = prm.step_loss(outputs.logits, labels)
            return (loss, outputs) if return_outputs else loss

    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=3, max_steps=30, logging_steps=1, learning_rate=1e-2, save_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = StepTrainer(classifier, arguments, train_dataset=data, data_collator=prm.StepCollator(tokenizer))
    batch = trainer.data_collator(data)
    with torch.no_grad():  # transformers' own loss, of the same labels, is the same
        own = classifier.eval()(**batch)
        torch.testing.assert_close(prm.step_loss(own.logits, batch["labels"]), own.loss)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] / 2
