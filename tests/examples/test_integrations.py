"""The examples of other libraries and of checkpoints: what they print holds."""

import importlib.util
import re

import pytest
from example_runs import falls, output_of


def losses_in(printed):
    return [float(loss) for loss in re.findall(r"loss ([\d.]+|nan|inf)", printed)]


def differences_in(printed):
    return [float(value) for value in re.findall(r"largest difference.* (\S+)", printed)]


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
