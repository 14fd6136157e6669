"""The prediction gives the published tables back, follows the recurrence, and says what it rests on."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from ladderkern.ladder import AlphaBeta, predict
from ladderkern.ladder.hardware import DEVICES, LINKS, MIB, Link, link_of
from ladderkern.ladder.published import (
    NEW_TOKENS,
    PROMPT,
    PUBLISHED_70B,
    PUBLISHED_405B,
    PUBLISHED_BATCHES,
    PUBLISHED_SIZES,
    TOKENWEAVE_ALL_REDUCE,
)
from ladderkern.ladder.shapes import MODELS, ModelShape, model_shape
from ladderkern.ladder.timing import ARCHITECTURES, elapsed

CELLS = [(link, batch, tp) for link, cells in PUBLISHED_70B.items() for batch, tp in cells]


def small(**changes):
    """A prediction of a model with few layers: quick, and nothing was published of it."""
    return predict(ModelShape("small", 8, 8192, 64, 8, 28672, 128256, 128), **{"tp": 8, **changes})


@pytest.mark.parametrize(("link", "batch", "tp"), CELLS)
@pytest.mark.parametrize("architecture", ["standard", "ladder", "parallel", "no_communication"])
def test_every_published_speed_of_the_70b_comes_back_within_3_percent(link, batch, tp, architecture):
    row = predict("llama-3-70b", tp, batch, link=link).row(architecture.replace("_", " "))
    published = getattr(PUBLISHED_70B[link][batch, tp], architecture)
    assert row.published_tokens_per_second == published
    assert row.tokens_per_second == pytest.approx(published, rel=0.03)
    assert row.tokens_per_second == pytest.approx(batch * NEW_TOKENS / row.seconds)


@pytest.mark.parametrize(("link", "batch", "tp"), CELLS)
def test_the_time_without_communication_is_an_input_above_batch_1_and_the_table_says_so(link, batch, tp):
    prediction = predict("llama-3-70b", tp, batch, link=link)
    row = prediction.row("no communication")
    exact = row.tokens_per_second == pytest.approx(row.published_tokens_per_second, rel=1e-12)
    assert (row.basis, exact) == (("published", True) if batch > 1 else ("fit", False))
    assert {prediction.row(name).basis for name in ("standard", "ladder", "parallel")} == {"fit"}
    assert {prediction.row(name).basis for name in ("hybrid", "ladder, perfect overlap")} == {"prediction"}
    assert ("the published time without communication, an input" in prediction.to_text()) == (batch > 1)


@pytest.mark.parametrize(("batch", "tp"), PUBLISHED_70B["nvlink"])
def test_the_roofline_alone_is_within_6_percent_of_the_time_without_communication(batch, tp):
    prediction = predict("llama-3-70b", tp, batch, device=DEVICES["h100"])
    row = prediction.row("no communication")
    assert row.tokens_per_second == pytest.approx(PUBLISHED_70B["nvlink"][batch, tp].no_communication, rel=0.06)


@pytest.mark.parametrize(("link", "batch"), [(link, batch) for link, cells in PUBLISHED_405B.items() for batch in cells])
@pytest.mark.parametrize("architecture", ["ladder", "parallel", "no communication"])
def test_published_speed_ups_of_the_405b_on_two_nodes_come_back_within_5_percent(link, batch, architecture):
    row = predict("405B", 16, batch, link=link).row(architecture)
    assert row.speed_up == pytest.approx(row.published_speed_up, rel=0.05)
    assert row.published_speed_up == getattr(PUBLISHED_405B[link][batch], architecture.replace(" ", "_"))
    assert (row.basis, row.published_tokens_per_second) == ("fit", None)


@pytest.mark.parametrize("batch", PUBLISHED_BATCHES)
def test_a_speed_up_at_a_batch_that_nothing_was_fitted_to_is_within_1_percent(batch):
    standard, ladder = PUBLISHED_BATCHES[batch]
    row = predict("70b", 8, batch).row("ladder")
    assert row.speed_up == pytest.approx(ladder / standard, rel=0.01)
    assert (row.basis, row.published_speed_up) == ("prediction", None)


# The 1B is small enough for launches, which overlap in a CUDA graph, to make up all of its time.
@pytest.mark.parametrize(("model", "off"), [("ladder-1b", 0.06), ("ladder-3b", 0.03), ("llama-3-8b", 0.03), ("34b", 0.03)])
def test_a_speed_up_of_a_model_that_nothing_was_fitted_to(model, off):
    standard, ladder = PUBLISHED_SIZES.get(model, (1.0, 1.348))
    assert predict(model, 8, 4).row("ladder").speed_up == pytest.approx(ladder / standard, rel=off)


# NCCL has more protocols than the two of the table: it is off most in between, at 2 MiB.
@pytest.mark.parametrize(("link", "place", "off"), [("nvlink", 0, 0.16), ("fast", 1, 0.03)])
@pytest.mark.parametrize("mib", TOKENWEAVE_ALL_REDUCE)
def test_all_reduces_that_others_measured(link, place, off, mib):
    measured = TOKENWEAVE_ALL_REDUCE[mib][place] * 1e-6
    assert LINKS[link].seconds(mib * MIB, 8) == pytest.approx(measured, rel=off)


@pytest.mark.parametrize("batch", [1, 4])
def test_with_a_7_us_all_reduce_most_of_the_gain_is_gone(batch):
    prediction = predict("70b", 8, batch, link="fast")
    assert prediction.run.all_reduce == pytest.approx(7e-6, rel=0.2)
    assert 1.12 < prediction.row("no communication").speed_up < 1.15
    assert 1.08 < prediction.row("ladder").speed_up < 1.11


@pytest.mark.parametrize("attention", [1.0, 3.0])
@pytest.mark.parametrize("mlp", [2.0, 5.0])
@pytest.mark.parametrize("all_reduce", [0.0, 0.5, 1.5, 4.0, 9.0])
def test_perfect_overlap_has_the_period_of_its_slowest_parts(attention, mlp, all_reduce):
    def time(layers, delay):
        return elapsed([attention, mlp] * layers, all_reduce, [delay] * (2 * layers))

    assert time(40, 0) == pytest.approx(40 * (attention + mlp + 2 * all_reduce))
    assert time(41, 1) - time(40, 1) == pytest.approx(max(attention, all_reduce) + max(mlp, all_reduce))
    hidden = all_reduce <= min(attention, mlp)
    assert (time(40, 1) == pytest.approx(40 * (attention + mlp) + all_reduce)) == hidden


def test_perfect_overlap_follows_the_recurrence_for_any_delays():
    """By walking through time, module by module and all-reduce by all-reduce."""
    draw = random.Random(0)
    for _ in range(200):
        compute = [draw.uniform(0.1, 3.0) for _ in range(7)]
        delays = [draw.randrange(4) for _ in compute]
        all_reduce = draw.uniform(0.0, 3.0)
        ended: list[float] = []
        summed: list[float] = []
        for i, delay in enumerate(delays):
            held = summed[: max(i - delay, 0)]  # stream i - delay holds the outputs of the modules before it
            start = max([0.0, *ended[-1:], *held])
            ended.append(start + compute[i])
            summed.append(max([ended[-1], *summed[-1:]]) + all_reduce)
        assert elapsed(compute, all_reduce, delays) == pytest.approx(summed[-1])


@pytest.mark.parametrize("standard_layers", [1, 3, 8])
def test_a_hybrid_exposes_two_all_reduces_a_standard_layer(standard_layers):
    """All but the last of them, whose output only the second ladder module reads, and the last module's."""
    delays = [0] * 2 * standard_layers + [1] * 2 * (8 - standard_layers)
    assert elapsed([1.0] * 16, 0.25, delays) == pytest.approx(16 + 0.25 * 2 * standard_layers)


def test_a_ladder_gains_most_where_an_all_reduce_takes_as_long_as_an_mlp_and_less_on_slower_links():
    base = small()
    phase = base.run.phases[-1]
    gains = {}
    for part in (0.2, 0.5, 1.0, 2.0, 5.0, 20.0):
        row = small(link=AlphaBeta(part * phase.mlp, 1e18)).row("ladder, perfect overlap")
        gains[part] = row.speed_up
    assert max(gains, key=gains.__getitem__) == 1.0
    assert gains[1.0] > gains[2.0] > gains[5.0] > gains[20.0] > 1.0


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("batch", [1, 4, 9, 64])
def test_no_architecture_beats_what_it_is_bounded_by(link, batch):
    rows = {row.architecture: row for row in small(link=link, batch=batch).rows}
    assert tuple(rows) == ARCHITECTURES
    order = ("no communication", "ladder, perfect overlap", "ladder", "hybrid", "standard")
    for faster, slower in itertools.pairwise(order):
        assert rows[faster].seconds < rows[slower].seconds
        assert rows[faster].hidden > rows[slower].hidden
    assert (rows["standard"].speed_up, rows["standard"].hidden, rows["no communication"].hidden) == (1.0, 0.0, 1.0)
    assert {row.basis for row in rows.values()} == {"prediction"}


def test_on_one_rank_nothing_is_communicated():
    rows = {row.architecture: row for row in small(tp=1).rows}
    assert {rows[name].speed_up for name in ARCHITECTURES if name != "parallel"} == {1.0}
    assert all(row.hidden == 0.0 for row in rows.values())


def test_layers_of_the_hybrid():
    assert small().run.ladder_layers == (4, 5, 6, 7)
    assert small(ladder_layers=2).run.ladder_layers == (6, 7)
    assert small(ladder_layers=[1, 5]).run.ladder_layers == (1, 5)
    none, every = small(ladder_layers=[]), small(ladder_layers=8)
    assert none.row("hybrid").seconds == none.row("standard").seconds
    assert every.row("hybrid").seconds == every.row("ladder").seconds


def test_a_given_time_without_communication_is_taken():
    prediction = predict("70b", 8, 4, no_communication=7.0)
    row = prediction.row("no communication")
    assert (row.seconds, row.basis) == (pytest.approx(7.0), "given")
    assert prediction.row("ladder").basis == "prediction"
    free = predict("70b", 8, 4)
    lost = [each.row("standard").seconds - each.row("no communication").seconds for each in (free, prediction)]
    assert lost[0] == pytest.approx(lost[1])


def test_nvlink_names_two_links():
    assert predict("8b", 8, nvlink=True) == predict("8b", 8) == predict("8b", 8, link="nvlink")
    assert predict("8b", 8, nvlink=False) == predict("8b", 8, link="no-p2p")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp": 7}, "tp must divide the 64 heads"),
        ({"tp": 0}, "tp must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"new_tokens": 0}, "new_tokens must be at least 1"),
        ({"link": "carrier pigeon"}, "link must be one of nvlink, no-p2p"),
        ({"device": "abacus"}, "device must be one of h100"),
        ({"nvlink": True, "link": "pcie"}, "nvlink and link must not both be given"),
        ({"ladder_layers": [8]}, "ladder_layers must name layers of the 8"),
        ({"ladder_layers": 9}, "ladder_layers must name layers of the 8"),
        ({"no_communication": 0.0}, "no_communication must be more than 0, got 0.0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_link_of_another_type_is_refused():
    with pytest.raises(TypeError, match="link must be a name, a Link or an AlphaBeta, got int"):
        small(link=3)


def test_the_text_holds_the_setting_every_row_and_what_it_rests_on():
    text = predict("llama-3-70b", 8, 1, nvlink=True).to_text()
    first, *lines = text.splitlines()
    assert first.startswith("Prediction: llama-3-70b, TP 8, batch 1, prompt 1024, 512 new tokens; H100 SXM; NVLink, NCCL; 24.")
    standard, ladder = (next(line.split() for line in lines if line.startswith(name)) for name in ("standard", "ladder  "))
    assert (standard[3], ladder[3], ladder[-1]) == ("77.39", "101.22", "fit")
    assert [line for line in lines if "prediction" in line and line.startswith(("ladder, perfect", "hybrid"))]
    for note in (DEVICES["h100"].basis, LINKS["nvlink"].basis, "40 of 80 layers are ladder layers (layer 40 to layer 79)"):
        assert note in text


def test_a_link_takes_the_fastest_protocol_of_its_world_size():
    link = Link("test", {2: (AlphaBeta(1e-6, 1e9), AlphaBeta(5e-6, 1e10)), 4: (AlphaBeta(3e-6, 1e9),)}, "given")
    assert link.seconds(1000, 2) == pytest.approx(2e-6)
    assert link.seconds(100_000, 2) == pytest.approx(15e-6)
    assert link.seconds(1000, 3) == pytest.approx(3e-6)  # halfway
    assert link.seconds(1000, 4) == link.seconds(1000, 64) == pytest.approx(4e-6)
    assert link.seconds(1000, 1) == 0.0
    assert link.times(2.5).seconds(100_000, 2) == pytest.approx(2.5 * 15e-6)


def test_the_hidden_share_falls_evenly_from_batch_4_to_16():
    link = LINKS["no-p2p"]
    small_batch, large_batch = link.hidden_small_batch, link.hidden_large_batch
    assert link.hidden_share(1) == link.hidden_share(4) == small_batch
    assert link.hidden_share(16) == link.hidden_share(64) == pytest.approx(large_batch)
    assert link.hidden_share(10) == pytest.approx((small_batch + large_batch) / 2)


def test_a_given_link_serves_every_world_size():
    link = link_of(AlphaBeta(5e-6, 2e9))
    assert {link.seconds(2000, world) for world in (2, 3, 8, 16)} == {5e-6 + 1e-6}
    assert "given" in link.title


def test_the_weights_of_the_models_add_up_to_their_names():
    shape = MODELS["llama-3-70b"]
    assert (shape.attention_weights, shape.mlp_weights) == (150_994_944, 704_643_072)
    total = {
        name: shape.layers * (shape.attention_weights + shape.mlp_weights) + 2 * shape.head_weights
        for name, shape in MODELS.items()
    }
    billions = {"ladder-1b": 1.28, "llama-3-8b": 8.0, "codellama-34b": 33.7, "llama-3-70b": 70.6, "llama-3.1-405b": 405.8}
    for name, count in billions.items():
        assert total[name] == pytest.approx(count * 1e9, rel=0.01)
    bloom = MODELS["bloom-176b"]
    assert total["bloom-176b"] - bloom.head_weights == pytest.approx(176.2e9, rel=0.01)  # its embedding is tied


@pytest.mark.parametrize(
    ("name", "shape"),
    [("1B", "ladder-1b"), ("3b", "ladder-3b"), ("34B", "codellama-34b"), ("Llama-3.1-70B", "llama-3-70b"),
     ("bloom-176B", "bloom-176b"), ("176b", "bloom-176b"), ("llama-3-405b", "llama-3.1-405b"), ("405b", "llama-3.1-405b")],
)  # fmt: skip
def test_names_of_models(name, shape):
    assert model_shape(name) is MODELS[shape]


def test_shapes_come_from_configs_and_folders(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the tests of transformers' models need it")
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = transformers.LlamaConfig(**sizes, intermediate_size=14336, vocab_size=128256)
    config.save_pretrained(tmp_path)
    expected = MODELS["llama-3-8b"]
    for source in (config, tmp_path, str(tmp_path), tmp_path / "config.json"):
        assert model_shape(source)._replace(name=expected.name) == expected
    bloom = transformers.BloomConfig(vocab_size=250880, hidden_size=14336, n_layer=70, n_head=112)
    assert model_shape(bloom)._replace(name="bloom-176b") == MODELS["bloom-176b"]


def test_models_that_are_no_dense_decoders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model must be a config, a folder that holds a config\.json, or one of ladder-1b"):
        model_shape("gpt-17")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mixtral", "num_local_experts": 8}))
    with pytest.raises(ValueError, match="model must be dense, got a config of the mixture of experts 'mixtral'"):
        model_shape(tmp_path)
    path.write_text(json.dumps({"model_type": "resnet", "hidden_size": 8}))
    with pytest.raises(ValueError, match="a decoder, got 'resnet' without layers, heads, vocab"):
        model_shape(path)


def test_published_runs_are_the_setting_that_is_predicted_by_default():
    run = predict("70b", 8).run
    assert (run.prompt, run.new_tokens) == (PROMPT, NEW_TOKENS)
    other = predict("70b", 8, 4, new_tokens=NEW_TOKENS + 1)
    assert all(row.basis == "prediction" and row.published_speed_up is None for row in other.rows)
