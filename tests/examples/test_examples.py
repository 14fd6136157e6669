"""The examples run as their readers run them, and teach what they say."""

import ast
import importlib.util
import math
import re

import pytest
from example_runs import EXAMPLES, falls, output_of

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "accelerate")),
    reason="the examples extra is not installed",
)


def test_chameleon_learns_both_parts_of_the_joint_loss():
    logs = [ast.literal_eval(line) for line in output_of("chameleon_joint_loss.py").splitlines() if line.startswith("{'loss'")]
    loss, cross_entropy, discrepancy = ([float(log[key]) for log in logs] for key in ("loss", "cross_entropy", "discrepancy"))
    assert len(logs) == 4
    assert falls(loss, 0.85)
    assert falls(cross_entropy, 0.85)
    assert falls(discrepancy, 0.95)
    for whole, *parts in zip(loss, cross_entropy, discrepancy, strict=True):
        assert math.isclose(whole, sum(parts), rel_tol=1e-3)


def test_a_ladder_learns_on_two_ranks_and_hides_more_communication():
    printed = output_of("ladder_llama.py", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    runs = [part.splitlines() for part in printed.split("wiring") if "step" in part]
    for lines in runs:
        assert falls([float(line.split()[3]) for line in lines if line.startswith("step")], 0.95)
    shares = re.findall(r"(\w+) wiring: .* forward (-?\d+)%, backward (-?\d+)%", printed)
    assert [name for name, *_ in shares] == ["standard", "ladder"]
    standard, ladder = ([int(share) for share in found] for _, *found in shares)
    # Times on a machine that may be busy: that launches come before compute, backward too, is tests/distributed's to show.
    assert ladder[0] > standard[0]


def test_spam_learns_and_resumes_as_if_uninterrupted():
    printed = output_of("spam_trainer.py")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+|nan|inf)", printed)]
    assert len(losses) == 8
    assert falls(losses, 0.8)
    assert float(re.search(r"largest difference from the uninterrupted run (\S+)", printed)[1]) == 0.0


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("chameleon_joint_loss", EXAMPLES / "chameleon_joint_loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def new_trainer(recipe, folder, batch=4, accumulate=1):
    """For one optimizer step over 4 examples with unequal numbers of image tokens."""
    recipe.transformers.set_seed(0)
    model = recipe.tiny_model()
    data = list(recipe.pictures(model, 4))
    for i, example in enumerate(data):
        example["labels"][3 : 3 + 5 * i] = [-100] * (5 * i)
        example["labels"][0] = recipe.IMAGE  # which no position predicts
    arguments = recipe.transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate, max_steps=1, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    return recipe.JointTrainer(model, arguments, train_dataset=data)


def mean_loss(trainer, data):
    """The loss over all of the data at once, each term divided by what it counts itself."""
    return trainer.compute_loss(trainer.model.eval(), trainer.data_collator(data)).item()


def test_accumulated_batches_count_as_one_large_batch(recipe, tmp_path):
    logs = []
    for batch, accumulate in ((4, 1), (1, 4)):
        trainer = new_trainer(recipe, tmp_path, batch, accumulate)
        expected = mean_loss(trainer, trainer.train_dataset)
        trainer.train()
        logs.append(trainer.state.log_history[0])
        assert logs[-1]["loss"] == pytest.approx(expected, rel=1e-5)
        assert logs[-1]["cross_entropy"] + logs[-1]["discrepancy"] == pytest.approx(expected, rel=1e-5)
    for key in ("cross_entropy", "discrepancy", "grad_norm"):
        assert logs[1][key] == pytest.approx(logs[0][key], rel=1e-4)


def test_evaluation_gives_the_mean_loss_whatever_was_trained_on_last(recipe, tmp_path):
    trainer = new_trainer(recipe, tmp_path)
    trainer.train()
    held_out = trainer.train_dataset[:2]
    assert trainer.evaluate(held_out)["eval_loss"] == pytest.approx(mean_loss(trainer, held_out), rel=1e-5)


def test_distances_are_those_of_the_codes_that_the_tokens_stand_for(recipe, tmp_path):
    trainer = new_trainer(recipe, tmp_path)
    token, other = 9, 23
    code_of = trainer.model.model.vocabulary_mapping.bpe2img
    codes = trainer.model.model.vqmodel.quantize.embedding.weight.detach()
    expected = (codes[code_of[token]] - codes[code_of[other]]).square().mean().item()
    distances = trainer.table(recipe.torch.tensor([token - recipe.IMAGE]))[0]
    assert distances[other - recipe.IMAGE].item() == pytest.approx(expected, rel=2e-3)
