"""Fine-tune Chameleon (or Anole) with cross-entropy + token discrepancy in the Hugging Face Trainer.

After ``pip install 'ladderkern[examples]'`` it runs in seconds on any CPU: the model is tiny and random, its pictures are drawn
here and tokenized by its own VQ encoder. A real one: ``ImageChameleonForConditionalGeneration.from_pretrained(...)``.
"""

import tempfile

import torch
import transformers

from ladderkern import DistanceTable, cross_entropy_with_discrepancy
from ladderkern.discrepancy import chameleon_logits

EOS, IMAGE, CODES, LETTERS = 2, 4, 64, str.maketrans("0123456789", "ABCDEFGHIJ")


class ImageChameleonForConditionalGeneration(transformers.ChameleonForConditionalGeneration):
    """Chameleon with unmasked image logits, for training alone; being its forward, this works inside wrappers such as DDP."""

    def forward(self, input_ids=None, attention_mask=None, pixel_values=None, labels=None, **_):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
        return transformers.modeling_outputs.CausalLMOutput(logits=chameleon_logits(self, **inputs))


class JointTrainer(transformers.Trainer):
    """The Trainer with the joint loss; each term is a mean over all accumulation steps and processes."""

    def __init__(self, model, *args, **options):
        super().__init__(model, *args, **options)
        self.loss_is_scaled_for_ga = True  # both counts are of the whole accumulated batch
        code_of = model.model.vocabulary_mapping.bpe2img  # token ids are not in the order of the codebook
        self.image_start, self.sums, self.steps = min(code_of), 0.0, 0
        codebook = model.model.vqmodel.quantize.embedding.weight
        self.table = DistanceTable(codebook, order=[code_of[token] for token in sorted(code_of)]).to(self.args.device)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        codes = [batch["labels"][..., 1:] - self.image_start for batch in batches]
        count = sum((((code >= 0) & (code < self.table.num_codes)).sum() for code in codes), torch.tensor(0)).to(device)
        self.num_images = self.accelerator.gather(count).sum() if self.args.average_tokens_across_devices else count
        self.steps += 1
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        counts = {"ce_normalizer": num_items_in_batch, "normalizer": self.num_images} if model.training else {}
        options = {"image_start": self.image_start, "shift": 1, "weight": 1.0, "return_parts": True, **counts}
        loss, *parts = cross_entropy_with_discrepancy(outputs.logits, inputs["labels"], self.table, **options)
        if model.training:  # DDP averages over processes what their common counts have divided already
            scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss, self.sums = scale * loss, self.sums + scale * torch.stack(parts)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args):
        if "loss" in logs:
            logs["cross_entropy"], logs["discrepancy"] = self.accelerator.reduce(self.sums / self.steps, "mean").tolist()
            self.sums, self.steps = 0.0, 0
        super().log(logs, *args)


def tiny_model():
    names = {f"IMGIMG{str(5 * i % CODES).translate(LETTERS)}Z": IMAGE + i for i in range(CODES)} | {"<image>": IMAGE + CODES}
    vq = {"embed_dim": 32, "num_embeddings": CODES, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1, 1]}
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ChameleonConfig(**sizes, num_key_value_heads=2, vocabulary_map=names, vq_config=vq)
    model = ImageChameleonForConditionalGeneration(config)
    for part in (model.model.vqmodel.quant_conv, model.model.vqmodel.quantize.embedding):
        part.weight.data *= 50.0  # a trained codebook has about unit variance, a random one far less
    return model


def pictures(model, count):
    """Three words, the 16 tokens of a picture that they describe, </s>; the words are not predicted."""
    for words in torch.randint(8, (count, 3)).tolist():
        picture = torch.full((1, 3, 16, 16), words[0] / 4 - 1)
        picture[..., words[2] :, words[2] :] = words[1] / 4 - 1
        target = [*model.model.get_image_tokens(picture)[0].tolist(), EOS]
        yield {"input_ids": [*(IMAGE + CODES + 1 + word for word in words), *target], "labels": [-100] * 3 + target}


if __name__ == "__main__":
    transformers.set_seed(0)
    model = tiny_model()
    with tempfile.TemporaryDirectory() as folder:
        size = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 32, "logging_steps": 8}
        rest = {"learning_rate": 3e-3, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
        arguments = transformers.TrainingArguments(folder, **size, **rest)
        JointTrainer(model, arguments, train_dataset=list(pictures(model, 128))).train()
