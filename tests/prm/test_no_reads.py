"""No function on responses reads a value, so none makes a device wait: all run on tensors that have none."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from ladderkern import prm

S, R, G = 40, 12, 5


def packed():
    return {
        "logits": torch.empty(S, 2),
        "prob": torch.empty(S),
        "offsets": torch.empty(R + 1, dtype=torch.int64),
        "sizes": torch.empty(G, dtype=torch.int64),
        "values": torch.empty(R),
        "indices": torch.empty(R, dtype=torch.int64),
        "flags": torch.empty(R, dtype=torch.bool),
        "labels": torch.empty(S, dtype=torch.int64),
    }


def scores(t):
    """Per-step and per-response fields, of no values."""
    floats, ints = torch.empty(R), torch.empty(R, dtype=torch.int64)
    whole = {"count": ints, "argmin": ints, "argmax": ints, "first_error": ints, "min_is_last": t["flags"]}
    per_step = dict.fromkeys(("margin", "prob", "log_prob"), t["prob"])
    return prm.StepScores(**{name: {**whole, **per_step}.get(name, floats) for name in prm.StepScores._fields})


CALLS = {
    "best_of_n": lambda t: prm.best_of_n(t["values"], t["sizes"]),
    "top_k": lambda t: prm.top_k(t["values"], t["sizes"], 3),
    "weighted_majority": lambda t: prm.weighted_majority(t["indices"], t["values"], t["sizes"]),
    "best_of_n_by_strategy": lambda t: prm.best_of_n_by_strategy(scores(t), t["sizes"])["min"],
    "best_of_n_table": lambda t: prm.best_of_n_table(scores(t), t["sizes"], t["flags"]).strict,
    "first_error_sweep": lambda t: prm.first_error_sweep(scores(t), t["offsets"], [0.25, 0.5]),
    "process_bench": lambda t: prm.process_bench(t["indices"], t["indices"]).f1,
    "process_bench_subsets": lambda t: prm.process_bench_subsets(t["indices"], t["indices"], t["indices"], 4).mean_f1,
    "min_is_last_share": lambda t: prm.min_is_last_share(scores(t)),
    "monte_carlo_labels": lambda t: prm.monte_carlo_labels(t["logits"] > 0).soft,
    "first_error": lambda t: prm.first_error(t["labels"], t["offsets"]),
    "drop_after_first_error": lambda t: prm.drop_after_first_error(t["labels"], t["offsets"]),
    "consensus_filter": lambda t: prm.consensus_filter(t["indices"], t["indices"]),
    "step_loss": lambda t: prm.step_loss(t["logits"], t["labels"], t["offsets"], drop_after_first_error=True),
    "soft step_loss": lambda t: prm.step_loss(t["logits"], t["prob"]),
    "state": lambda t: grown(t).scores().geometric_mean,
}


def grown(t):
    state = prm.StepState.empty(R)
    state = state.append(t["logits"][:R], where=t["flags"]).append(t["logits"][:R])
    return state.merge(prm.StepState.of_steps(t["logits"], t["offsets"])).select(t["indices"])


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_read(name):
    with FakeTensorMode():
        assert isinstance(CALLS[name](packed()), FakeTensor)


def test_reading_would_be_noticed():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        packed()["values"].sum().item()
