"""The examples of other libraries and of checkpoints: what they print holds."""

import importlib.util
import re

import pytest
from example_runs import EXAMPLES, ROOT, falls, output_of


def losses_in(printed):
    return [float(loss) for loss in re.findall(r"loss ([\d.]+|nan|inf)", printed)]


def differences_in(printed):
    return [float(value) for value in re.findall(r"largest difference.*? (\S+)$", printed, re.MULTILINE)]


@pytest.mark.parametrize(("library", "example"), [("accelerate", "accelerate_spam.py"), ("lightning", "lightning_spam.py")])
def test_spam_in_a_trainer_learns_and_resumes_bitwise(library, example):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    printed = output_of(example)
    losses = losses_in(printed)
    assert len(losses) == 5
    assert falls(losses, 0.8)
    assert differences_in(printed) == [0.0]
    assert re.search("resumed (half way|after 20 steps)", printed)


def test_an_adamw_checkpoint_goes_to_spam_and_back():
    printed = output_of("adamw_checkpoint.py")
    saved, adamw, spam, sparse = losses_in(printed)
    assert max(adamw, spam, sparse) < saved
    there_and_back, as_adamw = differences_in(printed)
    assert there_and_back == 0.0
    # The same formula in another order of operations: 50 steps of lr 3e-3 could differ by 0.15.
    assert as_adamw < 1e-5
    assert "must have shape (64, 8), got (64, 32)" in printed


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


def test_fsdp2_resumes_bitwise_from_a_distributed_checkpoint():
    printed = output_of("fsdp_checkpoint.py", *TORCHRUN, "2")
    losses = losses_in(printed)
    assert len(losses) == 5
    assert falls(losses, 0.8)
    assert differences_in(printed) == [0.0]


@needs_transformers
def test_a_parallelized_ladder_trains_as_on_one_process():
    printed = output_of("titan_parallelize.py", *TORCHRUN, "4")
    pairs = [(float(a), float(b)) for a, b in re.findall(r"loss (\S+), on one process (\S+)", printed)]
    assert len(pairs) == 4
    assert falls([loss for loss, _ in pairs], 0.5)
    for loss, alone in pairs:
        assert loss == pytest.approx(alone, abs=2e-3)


@needs_transformers
def test_a_prm_learns_from_trl_rows():
    printed = output_of("trl_prm.py")
    assert falls(losses_in(printed), 0.8)
    before, after = (float(f1) for f1 in re.findall(r"F1 (\S+)", printed))
    assert before < 50 < 65 < after


@needs_transformers
def test_outputs_of_transformers_and_vllm_score_alike():
    printed = output_of("score_outputs.py")
    assert re.findall(r"(\d) steps", printed) == ["3", "1", "2"]
    differences = differences_in(printed)
    assert len(differences) == 2
    # Padded and unpadded rows are multiplied in blocks of other shapes: some roundings of float32 values below 1.
    assert max(differences) < 1e-5


def test_a_step_in_backward_holds_few_gradients_at_a_time_and_trains_the_same():
    printed = output_of("optimizer_in_backward.py")
    gradients = int(re.search(r"gradients: (\d+)", printed)[1])
    ordinary, in_backward = map(int, re.search(r"step (\d+) bytes, in backward (\d+) bytes", printed).groups())
    assert ordinary >= gradients  # all of them at once
    assert in_backward < gradients / 5
    assert differences_in(printed) == [0.0]


@pytest.mark.parametrize("page", ["examples/README.md", "docs/examples.md"])
def test_a_page_lists_every_example_and_no_other(page):
    listed = set(re.findall(r"(?:- \[|^\| )`(\w+\.py)`", (ROOT / page).read_text(), re.MULTILINE))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}
