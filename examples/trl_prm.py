"""Train a PRM on TRL's data: rows of ``prompt``, ``completions`` (the steps) and ``labels`` (one bool a step).

    pip install 'ladderkern[examples]' && python examples/trl_prm.py

``StepCollator`` puts a separator behind each step by id, and the loss is read there alone. A tiny random Qwen2 learns which of
some comparisons hold, seconds on any CPU; prints the loss and ProcessBench's figures on held-out rows before and after.
"""

import random
import tempfile

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForTokenClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ladderkern import prm

STEPS, NUMBERS = 100, 8


def trl_rows(count, seed):
    """As ``datasets.load_dataset("trl-lib/math_shepherd")`` gives them. A step states that one number is below another."""
    draw = random.Random(seed)
    for _ in range(count):
        pairs = [sorted(draw.sample(range(NUMBERS), 2), reverse=draw.random() < 0.25) for _ in range(draw.randint(2, 4))]
        yield {
            "prompt": "which hold ? ",
            "completions": [f"{a} < {b} " for a, b in pairs],
            "labels": [a < b for a, b in pairs],
        }


def to_feature(row):
    """TRL's names to StepCollator's."""
    return {"prompt": row["prompt"], "steps": row["completions"], "labels": row["labels"]}


class PRMTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        # Under gradient accumulation every labelled step of the whole batch counts the same.
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = prm.step_loss(outputs.logits, labels, reduction=reduction) / (num_items_in_batch or 1)
        return (loss, outputs) if return_outputs else loss


def process_bench(model, collate, features):
    """How well the model finds the first wrong step of each row."""
    batch = collate(features)
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    mask = batch["labels"] != -100
    steps, offsets = prm.gather_steps(logits, mask)
    found = prm.score_steps(steps, offsets).first_error
    bench = prm.process_bench(found, prm.first_error(batch["labels"][mask], offsets))
    return f"wrong rows {bench.error_acc:.1f} %, right rows {bench.correct_acc:.1f} %, F1 {bench.f1:.1f}"


def main():
    set_seed(0)
    words = ["<pad>", "<step>", "which", "hold", "?", "<", *map(str, range(NUMBERS))]
    rules = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}))
    rules.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, pad_token="<pad>", additional_special_tokens=["<step>"])
    model = Qwen2ForTokenClassification(Qwen2Config(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_labels=2, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    ))  # fmt: skip
    collate = prm.StepCollator(tokenizer, separator="<step>")
    train, held_out = ([to_feature(row) for row in trl_rows(count, seed)] for count, seed in ((2000, 0), (300, 1)))
    print("before:", process_bench(model, collate, held_out))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=32, learning_rate=3e-3, logging_steps=25, save_strategy="no",
            remove_unused_columns=False, report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = PRMTrainer(model, arguments, train_dataset=train, data_collator=collate)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    for log in trainer.state.log_history:
        if "loss" in log:
            print(f"step {log['step']}: loss {float(log['loss']):.4f}")
    print("after:", process_bench(model, collate, held_out))


if __name__ == "__main__":
    main()
