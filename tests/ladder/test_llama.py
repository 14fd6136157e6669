"""Transformers models wired as ladders: the equation, and everything else as it was."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", minversion="5.0", reason="the tests of transformers' models need it")

from ladderkern import ladder  # noqa: E402
from ladderkern.testing import assert_within_budget  # noqa: E402
from ladderkern.testing.llamas import ladder_equation, tiny_llama  # noqa: E402

KINDS = ("llama", "qwen2", "mistral")
LAYERS = {"all": (None, [0, 1, 2, 3]), "last two": (2, [2, 3]), "mixed": ([0, 2], [0, 2]), "none": ([], [])}
pytestmark = pytest.mark.filterwarnings("ignore:.*must be retrained:UserWarning")


def batch():
    """(ids, padding mask, labels) of two texts of 12 tokens, one padded on the left by 3."""
    ids = torch.randint(2, 61, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return ids, mask, torch.where(mask == 1, ids, -100)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_wired_model_follows_the_equation(kind, layers):
    plain, (asked, chosen) = tiny_llama(kind), LAYERS[layers]
    ids, mask, labels = batch()
    stream = ladder_equation(plain, ids, chosen, attention_mask=mask)[-1]
    expected = plain.lm_head(plain.model.norm(stream))
    plain.loss_function(logits=expected, labels=labels, vocab_size=61).backward()
    wired = ladder.to_ladder(tiny_llama(kind), asked)
    output = wired(ids, attention_mask=mask, labels=labels)
    output.loss.backward()
    torch.testing.assert_close(output.logits, expected)
    for (name, p), q in zip(wired.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_bfloat16_is_as_near_as_the_plain_equation(kind):
    ids, _, _ = batch()
    logits = []
    for dtype in (torch.bfloat16, torch.float64):
        plain = tiny_llama(kind).to(torch.bfloat16).to(dtype)
        stream = ladder_equation(plain, ids, range(4))[-1]
        logits.append(plain.lm_head(plain.model.norm(stream)))
    actual = ladder.to_ladder(tiny_llama(kind).to(torch.bfloat16))(ids).logits
    assert_within_budget(actual, *logits, "logits")


@pytest.mark.parametrize("layers", LAYERS)
def test_the_layers_are_written_to_the_config(layers):
    asked, chosen = LAYERS[layers]
    assert ladder.to_ladder(tiny_llama(), asked).config.ladder_layers == chosen


@pytest.mark.parametrize(("recorded", "chosen"), [([1, 3], [1, 3]), ([], []), (2, [2, 3])])
def test_none_takes_the_layers_of_the_config(recorded, chosen):
    model = tiny_llama()
    model.config.ladder_layers = recorded
    with warnings.catch_warnings(action="error"):
        assert ladder.to_ladder(model).config.ladder_layers == chosen


@pytest.mark.parametrize(
    ("layers", "error"),
    [
        *((layers, ValueError) for layers in (5, -1, [4], [-1], [1, 1])),
        *((layers, TypeError) for layers in (True, "2", 1.5, [1.0], [False])),
    ],
)
def test_layers_that_the_model_does_not_have(layers, error):
    model = tiny_llama()
    with pytest.raises(error, match="ladder_layers must be"):
        ladder.to_ladder(model, layers)
    assert type(model.model.layers) is nn.ModuleList
    assert not hasattr(model.config, "ladder_layers")


def test_another_model_is_refused():
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11)
    with pytest.raises(TypeError, match="must be a transformers model of type llama, qwen2, mistral, got GPT2LMHeadModel"):
        ladder.to_ladder(transformers.GPT2LMHeadModel(config))
    with pytest.raises(TypeError, match="got Linear"):
        ladder.to_ladder(nn.Linear(2, 2))


def test_rewiring_warns_that_the_weights_must_be_retrained():
    with pytest.warns(UserWarning, match="2 of 4 layers .* must be retrained") as caught:
        ladder.to_ladder(tiny_llama(), 2)
    assert caught[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        ladder.to_ladder(tiny_llama(), [])


def test_parameters_and_keys_stay():
    model = tiny_llama()
    before, keys, modules = list(model.parameters()), list(model.state_dict()), [name for name, _ in model.named_modules()]
    assert ladder.to_ladder(model) is model
    assert all(p is q for p, q in zip(model.parameters(), before, strict=True))
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == modules


def test_wiring_again_replaces_the_wiring():
    ids, _, _ = batch()
    model = tiny_llama()
    ladder.to_ladder(model, 3)
    ladder.to_ladder(model, [0, 2])
    torch.testing.assert_close(model(ids).logits, ladder.to_ladder(tiny_llama(), [0, 2])(ids).logits, rtol=0, atol=0)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_a_file])
def test_a_copy_is_wired_alike_and_stands_alone(copied):
    ids, _, labels = batch()
    model = ladder.to_ladder(tiny_llama(), [1, 2])
    other = copied(model)
    before = model(ids).logits
    assert torch.equal(other(ids).logits, before)
    other(ids, labels=labels).loss.backward()
    with torch.no_grad():
        for p in other.parameters():
            assert p.grad is not None
            p.zero_()
    assert torch.equal(model(ids).logits, before)
    assert not other(ids).logits.any()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_models_come_back_wired(kind, tmp_path):
    ids, mask, _ = batch()
    model = ladder.to_ladder(tiny_llama(kind), [1, 2])
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*must be retrained")
        loaded = ladder.from_pretrained(tmp_path)
    assert loaded.config.ladder_layers == [1, 2]
    assert torch.equal(loaded(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)
    standard = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert not torch.allclose(standard(ids).logits, model(ids).logits)


def test_a_model_without_recorded_layers_is_loaded_as_it_is(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    loaded = ladder.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(loaded.model.layers) is nn.ModuleList
    assert loaded.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", ["all", "mixed"])
def test_caches_generate_what_whole_forwards_do(kind, layers):
    ids, mask, _ = batch()
    model = ladder.to_ladder(tiny_llama(kind), LAYERS[layers][0])
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=False)
    for options in ({}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, **options), expected), (
            options
        )
    alone = model.generate(ids[:1, 3:], max_new_tokens=8, do_sample=False)
    assert torch.equal(alone[0], expected[0, 3:])  # padding changes nothing


def count_calls(module):
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(None))  # computing again may stop before a forward hook
    return calls


def cache_name(model):
    """What this transformers calls the argument for a cache; another name may be deprecated."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_computed_twice_and_give_the_same_gradients(every, reentrant):
    ids, mask, labels = batch()
    expected, model = ladder.to_ladder(tiny_llama(), 3).train(), ladder.to_ladder(tiny_llama(), 3).train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant}, every_n_layers=every)
    calls = [count_calls(module) for layer in model.model.layers for module in (layer.self_attn, layer.mlp)]
    for m in (expected, model):  # without a cache of ours, transformers would make none
        cache = {cache_name(m): transformers.DynamicCache(config=m.config)}
        m(ids, attention_mask=mask, labels=labels, use_cache=True, **cache).loss.backward()
    assert [len(each) for each in calls] == [2 if i // 2 % every == 0 else 1 for i in range(8)]
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", LAYERS)
def test_hidden_states_are_the_streams_after_each_layer(kind, layers):
    asked, chosen = LAYERS[layers]
    ids, mask, _ = batch()
    plain = tiny_llama(kind)
    streams = ladder_equation(plain, ids, chosen, attention_mask=mask)[::2]
    model = ladder.to_ladder(tiny_llama(kind), asked)
    output = model(ids, attention_mask=mask, output_hidden_states=True)
    assert len(output.hidden_states) == 5
    for state, stream in zip(output.hidden_states, [*streams[:-1], plain.model.norm(streams[-1])], strict=True):
        torch.testing.assert_close(state, stream)


def test_attentions_are_given_out():
    ids, _, _ = batch()
    model = ladder.to_ladder(tiny_llama(attn_implementation="eager"))
    attentions = model(ids, output_attentions=True).attentions
    assert [a.shape for a in attentions] == [(2, 4, 12, 12)] * 4
    for a in attentions:
        torch.testing.assert_close(a.sum(-1), torch.ones(2, 4, 12).to(a.dtype))


def test_hooks_of_layers_see_the_streams_around_them():
    ids, _, _ = batch()
    model = ladder.to_ladder(tiny_llama(), [1, 2])
    seen = {}
    model.model.layers[2].register_forward_hook(lambda module, args, output: seen.update(before=args[0], after=output))
    model.model.layers[1].register_forward_hook(
        lambda module, args, kwargs, output: seen.update(kwargs=kwargs, between=output), with_kwargs=True
    )
    model(ids)
    streams = ladder_equation(tiny_llama(), ids, [1, 2])
    torch.testing.assert_close(seen["before"], streams[4])
    torch.testing.assert_close(seen["after"], streams[6])
    assert seen["between"] is seen["before"]
    assert "position_embeddings" in seen["kwargs"]


def test_a_part_of_the_layers_cannot_be_run():
    model = ladder.to_ladder(tiny_llama())
    assert isinstance(model.model.layers[1], type(model.model.layers[0]))
    model.config.num_hidden_layers = 2
    with pytest.raises(ValueError, match="runs all of its layers"):
        model(batch()[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_wired_model_compiles_into_one_graph(kind):
    ids, _, labels = batch()
    model, expected = ladder.to_ladder(tiny_llama(kind), 2), ladder.to_ladder(tiny_llama(kind), 2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for m in (compiled, expected):
        m(ids, labels=labels, use_cache=False).loss.backward()
    torch.testing.assert_close(compiled(ids).logits, expected(ids).logits)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_models_with_another_head_or_none_are_wired_too():
    ids, _, _ = batch()
    whole = ladder.to_ladder(tiny_llama(), 2)
    inner = copy.deepcopy(tiny_llama().model)
    assert torch.equal(ladder.to_ladder(inner, 2)(ids).last_hidden_state, whole.model(ids).last_hidden_state)
