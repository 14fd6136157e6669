"""Train with SPAM in the Hugging Face Trainer, and resume a checkpoint as if nothing had happened.

    pip install 'ladderkern[examples]' && python examples/spam_trainer.py

A tiny random Llama learns the bytes of Python's own documentation: seconds on any CPU.
"""

import tempfile
from pydoc_data.topics import topics

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed

from ladderkern import SPAM

STEPS, LENGTH = 40, 64


def tiny_llama():
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def documentation(count):
    """The first ``count`` pieces of the text, one token a byte."""
    text = torch.tensor(list("\n".join(topics.values()).encode()[: count * LENGTH]))
    return [{"input_ids": piece, "labels": piece} for piece in text.split(LENGTH)]


def trainer_with_spam(folder):
    model = tiny_llama()
    # The published 500 / 150 / 20, scaled to the short run: resets at 13, 26 and 39, the last two after the checkpoint.
    optimizer = SPAM(
        model.parameters(), lr=5e-3, density=0.25, mask_unit="element", reset_interval=13, warmup_steps=4, unclipped_steps=1
    )
    arguments = TrainingArguments(
        folder, max_steps=STEPS, per_device_train_batch_size=8, warmup_steps=4, logging_steps=5, save_steps=STEPS // 2,
        max_grad_norm=0.0,  # SPAM clips each element itself; a norm clipped before it would hide the spikes
        report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    # None: the Trainer makes its scheduler for our optimizer.
    trainer = Trainer(model, arguments, train_dataset=documentation(512), optimizers=(optimizer, None))
    trainer.remove_callback(PrinterCallback)
    return trainer


def main():
    with tempfile.TemporaryDirectory() as folder:
        set_seed(0)
        whole = trainer_with_spam(folder)
        whole.train()
        set_seed(1)  # other first weights, all of which the checkpoint replaces
        resumed = trainer_with_spam(folder)
        resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{STEPS // 2}")
    for logs in whole.state.log_history:
        if "loss" in logs:
            print("step {step}: loss {loss:.4f} nats a byte, lr {learning_rate:.5f}".format(**logs))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    difference = max((a - b).abs().max().item() for a, b in pairs)
    print(f"resumed at step {STEPS // 2}: largest difference from the uninterrupted run {difference}")


if __name__ == "__main__":
    main()
