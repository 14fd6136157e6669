"""Against published numbers: RewardMATH Best-of-10 of two PRMs, and ProcessBench (their data: ladderkern/prm/data/NOTICE)."""

import pytest
import torch

from ladderkern import prm
from ladderkern.prm import published

# Groups out of 483 in which the right response is (strictly above all nine, above or equal).
COUNTS = {
    "math_shepherd": {
        "product": (83, 83),
        "geometric_mean": (76, 76),
        "min": (74, 74),
        "mean": (73, 73),
        "last": (88, 88),
        "mean_margin": (71, 71),
        "max": (19, 32),
    },
    "reasoneval_7b": {
        "product": (88, 88),
        "geometric_mean": (98, 98),
        "min": (94, 96),
        "mean": (97, 97),
        "last": (72, 72),
        "mean_margin": (101, 101),
        "max": (58, 87),
    },
}
PERCENT = {
    "math_shepherd": (17.18, 15.73, 15.32, 15.11, 18.22, 14.70, 3.93),
    "reasoneval_7b": (18.22, 20.29, 19.46, 20.08, 14.91, 20.91, 12.01),
}
# Of 4,830 responses: first minimum at the last step, no step below 0.5, the product in float16 exactly 0; least sum of log p.
FACTS = {"math_shepherd": (3306, 1332, 102, -41.187), "reasoneval_7b": (1521, 744, 3, -23.049)}
MODELS = pytest.mark.parametrize("model", published.REWARDMATH)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def scored(model, dtype=torch.float64, **options):
    data = published.rewardmath(model)
    return data, prm.score_probs(data.prob.to(dtype), data.offsets, **options)


@MODELS
@DTYPES
def test_best_of_10(backend, model, dtype):
    data, scores = scored(model, dtype)
    assert (len(data.prob), len(data.correct), len(data.group_sizes)) == (29822, 4830, 483)
    table = prm.best_of_n_table(scores, data.group_sizes, data.correct, probabilities=True)
    counts = dict(zip(prm.STRATEGIES, zip(table.strict.tolist(), table.ties.tolist(), strict=True), strict=True))
    expected = dict(COUNTS[model])
    if (model, dtype) == ("reasoneval_7b", torch.float32):
        expected["max"] = (56, 90)  # steps differ by less than 1e-7: float32 merges them
    assert counts == expected
    if dtype == torch.float64:
        percent = [round(100 * counts[name][0] / 483, 2) for name in COUNTS[model]]
        assert percent == pytest.approx(PERCENT[model], abs=1e-9)


@MODELS
def test_best_of_10_through_margins(backend, model):
    data, scores = scored(model)
    table = prm.best_of_n_table(prm.score_steps(scores.margin, data.offsets), data.group_sizes, data.correct)
    assert dict(zip(prm.STRATEGIES, zip(table.strict.tolist(), table.ties.tolist(), strict=True), strict=True)) == COUNTS[model]


@MODELS
def test_the_published_percentages_are_met_to_their_last_digit_but_one(backend, model):
    data, scores = scored(model)
    best = prm.best_of_n_by_strategy(scores, data.group_sizes, probabilities=True)
    for name, percent in published.PUBLISHED_BEST_OF_10[model].items():
        # The published table rounds up where we round to even: 76 / 483 is 15.735 %.
        assert 100 * (best[name] == 0).double().mean().item() == pytest.approx(percent, abs=0.0051)


@MODELS
@DTYPES
def test_where_the_minimum_falls_and_how_many_responses_have_no_wrong_step(backend, model, dtype):
    last, no_error, _, least = FACTS[model]
    _, scores = scored(model, dtype)
    assert scores.min_is_last.sum().item() == last
    assert prm.min_is_last_share(scores).item() == last / 4830
    assert (scores.first_error == -1).sum().item() == no_error
    assert scores.log_product.min().item() == pytest.approx(least, abs=5e-4)


@MODELS
def test_no_product_is_lost_where_float16_loses_some(backend, model):
    _, scores = scored(model, torch.float32)
    assert (scores.product.half() == 0).sum().item() == FACTS[model][2]
    assert (scores.product > 0).all()


# (hits among the wrong, hits among the right, F1) of predictors that look at no step.
BASELINES = {
    "gsm8k": {
        "-1": (0, 193, 0.0),
        "0": (37, 0, 0.0),
        "last": (16, 0, 0.0),
        "middle": (44, 193, 35.0598),
        "first": (33, 193, 27.5),
        "label": (207, 193, 100.0),
    },
    "math": {
        "-1": (0, 406, 0.0),
        "0": (115, 0, 0.0),
        "last": (32, 0, 0.0),
        "middle": (113, 406, 31.9661),
        "first": (93, 406, 27.0742),
        "label": (594, 406, 100.0),
    },
}
CASES = {"gsm8k": (207, 193, 2082), "math": (594, 406, 6505)}


def baseline(name, data):
    if name in ("middle", "first"):
        return torch.where(data.final_answer_correct, -1, data.steps // 2 if name == "middle" else 0)
    if name == "last":
        return data.steps - 1
    return data.label if name == "label" else torch.full_like(data.label, int(name))


@pytest.mark.parametrize("subset", published.PROCESSBENCH)
def test_process_bench_of_degenerate_predictors(subset):
    data = published.processbench(subset)
    errors, corrects, steps = CASES[subset]
    assert [int(x.sum()) for x in (data.label != -1, data.label == -1, data.steps)] == [errors, corrects, steps]
    for name, (error_hits, correct_hits, f1) in BASELINES[subset].items():
        result = prm.process_bench(baseline(name, data), data.label)
        assert result.error_acc.item() == 100 * error_hits / errors, name
        assert result.correct_acc.item() == 100 * correct_hits / corrects, name
        assert result.f1.item() == pytest.approx(f1, abs=5e-5), name


def test_the_older_label_of_math_688_moves_one_baseline_alone():
    data = published.processbench("math")
    older = data.label.clone()
    assert older[688] == 0
    older[688] = 2
    assert prm.process_bench(baseline("0", data), older).error_acc.item() == 100 * 114 / 594
    assert round(100 * 114 / 594, 4) == 19.1919


def test_both_subsets_at_once():
    parts = [published.processbench(subset) for subset in published.PROCESSBENCH]
    label = torch.cat([part.label for part in parts])
    predicted = torch.cat([baseline("middle", part) for part in parts])
    subset = torch.arange(2).repeat_interleave(torch.tensor([400, 1000]))
    result = prm.process_bench_subsets(predicted, label, subset, 2)
    assert result.subsets.f1.tolist() == pytest.approx([35.0598, 31.9661], abs=5e-5)
    assert result.mean_f1.item() == pytest.approx((35.0598 + 31.9661) / 2, abs=5e-5)


# Error, correct and F1 of Qwen2.5-Math-PRM-7B and -72B (arXiv 2501.07301, table 7), and the averages that the paper prints.
TABLE_7 = {
    73.5: ((72.0, 96.4, 82.4), (68.0, 90.4, 77.6), (55.7, 85.5, 67.5), (55.2, 83.0, 66.3)),
    78.3: ((78.7, 97.9, 87.3), (74.2, 88.2, 80.6), (67.9, 82.0, 74.3), (64.8, 78.8, 71.1)),
}


@pytest.mark.parametrize("average", TABLE_7)
def test_the_papers_f1_and_average_follow_from_its_accuracies(average):
    # 1,000 cases of each class in each subset, of which as many are right as the accuracies say.
    label = torch.tensor([0] * 1000 + [-1] * 1000).repeat(4)
    predicted = []
    for error, correct, _ in TABLE_7[average]:
        for hits, right, wrong in ((round(10 * error), 0, 1), (round(10 * correct), -1, 1)):
            predicted += [right] * hits + [wrong] * (1000 - hits)
    result = prm.process_bench_subsets(torch.tensor(predicted), label, torch.arange(4).repeat_interleave(2000), 4)
    # Accuracies come to us rounded to a tenth, and F1 moves by at most as much.
    assert result.subsets.f1.tolist() == pytest.approx([f1 for _, _, f1 in TABLE_7[average]], abs=0.1)
    assert result.mean_f1.item() == pytest.approx(average, abs=0.1)


@pytest.mark.parametrize("load", [published.rewardmath, published.processbench])
def test_an_unknown_name_is_an_error_that_lists_the_known(load):
    with pytest.raises(ValueError, match=r"must be one of \w+, \w+, got 'unknown'"):
        load("unknown")
