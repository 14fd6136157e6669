"""Tensor-parallel models give what one process gives: logits, losses, gradients, tokens."""

from __future__ import annotations

import copy
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from twins import full, mesh_of

pytest.importorskip("transformers", minversion="5.0", reason="the tests of transformers' models need it")

from llamas import LAYERS, MODELS, batch, check_gradients, parallel_model, plain_logits, whole_model

from ladderkern import ladder
from ladderkern.ladder.vocabulary import vocabulary_parallel_loss
from ladderkern.testing import assert_within_budget, floats
from ladderkern.testing.llamas import ladder_equation, plain_norm, tiny_llama

ForCausalLMLoss = pytest.importorskip(
    "transformers.loss.loss_utils", reason="the tests of transformers' models need it"
).ForCausalLMLoss


def whole_loss(logits, labels, num_items_in_batch=None, ignore_index=-100, shift_labels=None):
    """Transformers' loss in the dtype of the logits."""
    targets = F.pad(labels, (0, 1), value=ignore_index)[:, 1:] if shift_labels is None else shift_labels
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=ignore_index, reduction="sum")
    return losses / ((targets != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_gradients_are_those_of_one_process(name, layers):
    model = parallel_model(name, layers).train()
    inputs = batch(model)
    plain, expected = plain_logits(name, layers, inputs)
    loss = whole_loss(expected, inputs["labels"])
    loss.backward()
    output = model(**inputs)
    output.loss.backward()
    assert output.logits.placements == (Shard(2),)
    torch.testing.assert_close(output.logits.full_tensor(), expected)
    torch.testing.assert_close(output.loss, loss)
    check_gradients(model, plain)


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("name", MODELS)
def test_whole_logits_have_gradients_too(name):
    model = parallel_model(name)
    inputs = batch(model)
    plain, expected = plain_logits(name, "ladder", inputs)
    del inputs["labels"]
    logits = model(**inputs).logits
    torch.testing.assert_close(logits, expected)
    for x in (logits, expected):
        x.square().sum().backward()
    check_gradients(model, plain)


@pytest.mark.ranks(2, 4)
def test_a_model_in_bfloat16_is_as_near_as_one_process():
    inputs, logits = batch(tiny_llama()), []
    for dtype in (torch.bfloat16, torch.float64):
        plain = tiny_llama().to(torch.bfloat16).to(dtype)
        stream = ladder_equation(plain, inputs["input_ids"], range(4))[-1]
        logits.append(plain.lm_head(plain_norm(stream, plain.model.norm)))
    model = ladder.tensor_parallel(whole_model().to(torch.bfloat16), mesh_of(dist.get_world_size()))
    assert_within_budget(model(inputs["input_ids"]).logits, *logits, "logits")


@pytest.mark.ranks(2)
def test_whole_logits_come_with_the_loss_in_evaluation_and_from_tuples():
    model = parallel_model()
    inputs = batch(model)
    _, expected = plain_logits("llama", "ladder", inputs)
    torch.testing.assert_close(model(**inputs).logits, expected)
    torch.testing.assert_close(model(**inputs, return_dict=False)[1], expected)
    del inputs["labels"]
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, expected[:, -2:])


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_tokens_are_generated(name, layers):
    model, whole = parallel_model(name, layers), whole_model(name, layers)
    inputs = batch(model)
    del inputs["labels"]
    expected = whole.generate(**inputs, max_new_tokens=6, do_sample=False)
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False, **options), expected), options


@pytest.mark.ranks(2)
def test_hidden_states_are_whole():
    model, whole = parallel_model(layers="hybrid"), whole_model(layers="hybrid")
    inputs = batch(model)
    states, expected = (m(**inputs, output_hidden_states=True).hidden_states for m in (model, whole))
    assert len(states) == 5
    for state, other in zip(states, expected[:-1], strict=False):  # transformers' own last norm rounds to float32
        torch.testing.assert_close(state, other)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", ["llama", "tied"])
def test_checkpointed_layers_do_not_communicate_again(name):
    records, gradients = [], []
    for checkpointed in (False, True):
        inner = ladder.ProcessGroupCommunicator(mesh_of(2).get_group())
        recorder = ladder.RecordingCommunicator(inner)
        model = ladder.tensor_parallel(whole_model(name), mesh_of(2), communicator=recorder).train()
        if checkpointed:
            model.activation_checkpointing_enable()
        model(**batch(model)).loss.backward()
        records.append([(event.kind, event.name) for event in recorder.events])
        gradients.append([full(p.grad) for p in model.parameters()])
    assert sum(kind == "launch" for kind, _ in records[0]) == 16
    assert records[0] == records[1]
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("layers", LAYERS)
def test_ladder_layers_hide_their_all_reduces_and_standard_layers_wait(layers):
    recorder = ladder.RecordingCommunicator(ladder.ProcessGroupCommunicator(mesh_of(2).get_group()))
    model = ladder.tensor_parallel(whole_model(layers=layers), mesh_of(2), communicator=recorder)
    with torch.no_grad():
        model(**batch(model))
    order = [(event.kind, event.name.branch) for event in recorder.events]
    for branch in range(1, 8):
        late = branch // 2 in LAYERS[layers]
        assert (order.index(("wait", branch - 1)) > order.index(("compute", branch))) is late, branch


@pytest.mark.ranks(2)
def test_the_first_rank_decides_the_values():
    torch.manual_seed(dist.get_rank())
    model = tiny_llama()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    own = [p.detach().clone() for p in model.parameters()]
    ladder.tensor_parallel(model, mesh_of(2))
    same = [torch.equal(full(p), q) for p, q in zip(model.parameters(), own, strict=True)]
    assert same == [dist.get_rank() == 0] * len(own)


@pytest.mark.ranks(4)
def test_parameters_are_dtensors_that_keep_their_keys():
    for name in MODELS:
        model, whole = parallel_model(name), whole_model(name)
        assert list(model.state_dict()) == list(whole.state_dict())
        assert (model.lm_head.weight is model.model.embed_tokens.weight) is (name == "tied")
        for (key, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
            assert isinstance(p, DTensor), key
            assert torch.equal(full(p), q), key
            shared = "norm" in key or (model.config.num_key_value_heads < 4 and ("k_proj" in key or "v_proj" in key))
            row_bias = key.endswith(("o_proj.bias", "down_proj.bias"))
            assert p.to_local().numel() == q.numel() if shared or row_bias else p.to_local().numel() < q.numel(), key


@pytest.mark.ranks(2)
def test_a_copy_speaks_to_the_same_ranks_and_stands_alone():
    model = parallel_model()
    inputs = batch(model)
    expected = model(**inputs).logits
    other = copy.deepcopy(model)
    assert torch.equal(other(**inputs).logits, expected)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(model(**inputs).logits, expected)
    assert not other(**inputs).logits.any()


@pytest.mark.ranks(2)
def test_compiled_branches_and_compiled_models_give_the_same():
    expected, model, compiled = (parallel_model(layers="hybrid").train() for _ in range(3))
    model.model.layers.stack.compile_branches(backend="aot_eager")
    inputs = batch(model)
    for m in (expected, model, torch.compile(compiled, fullgraph=True, backend="aot_eager")):
        m(**inputs, use_cache=False).loss.backward()
    for m in (model, compiled):
        for (name, p), q in zip(m.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(full(p.grad), full(q.grad), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.ranks(2)
def test_other_optimizers_and_norm_clipping_take_the_parameters():
    model, whole = parallel_model(), ladder.tensor_parallel(whole_model(), mesh_of(2, 1)["tp"])
    for m in (model, whole):
        m(**batch(m)).loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 0.5)
        torch.optim.AdamW(m.parameters(), lr=0.01).step()
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(full(p), full(q), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.ranks(2)
def test_wiring_may_come_after_sharding():
    model = ladder.tensor_parallel(tiny_llama(), mesh_of(2))
    inputs = batch(model)
    for layers in ("standard", "ladder", "hybrid"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *args, **kwargs: None)
            ladder.to_ladder(model, LAYERS[layers])
        torch.testing.assert_close(model(**inputs).logits, plain_logits("llama", layers, inputs)[1])


def refuse(error, match, model, mesh):
    """On one rank alone: whoever communicates first hangs."""
    if dist.get_rank() == 0:
        before = [id(p) for p in model.parameters()]
        with pytest.raises(error, match=match):
            ladder.tensor_parallel(model, mesh)
        assert [id(p) for p in model.parameters()] == before
    dist.barrier()


@pytest.mark.ranks(4)
def test_what_cannot_be_sharded_is_refused_before_any_communication():
    mesh = mesh_of(4)
    six = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 6}
    refuse(ValueError, "num_attention_heads must be a multiple of the 4 ranks", tiny_llama(**six), mesh)
    refuse(ValueError, "intermediate_size must be a multiple", tiny_llama(intermediate_size=50), mesh)
    three = {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 3}
    refuse(ValueError, "num_key_value_heads must divide the 4 ranks", tiny_llama(**three), mesh)
    refuse(ValueError, r"mesh must have one dimension, got 2 .*mesh\['tp'\]", tiny_llama(), mesh_of(2, 2))
    refuse(TypeError, "mesh must be a torch.distributed DeviceMesh", tiny_llama(), dist.group.WORLD)
    refuse(TypeError, "language model head, got LlamaModel", tiny_llama().model, mesh)
    mixed = tiny_llama()
    mixed.model.norm.to("meta")
    refuse(ValueError, "on one device, got cpu, meta", mixed, mesh)
    wrapped = tiny_llama()
    wrapped.model.layers[1].mlp.up_proj = torch.nn.Sequential(wrapped.model.layers[1].mlp.up_proj)
    refuse(TypeError, "plain nn.Linear, got Sequential", wrapped, mesh)
    refuse(ValueError, "sharded already", ladder.tensor_parallel(tiny_llama(), mesh), mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "get_backend_config", lambda group: "cpu:gloo,cuda:nccl")
        patch.setenv("ENABLE_INTRA_NODE_COMM", "1")
        refuse(ValueError, "unset ENABLE_INTRA_NODE_COMM", tiny_llama(), mesh)


def test_a_process_group_must_be_initialised():
    with pytest.raises(ValueError, match="process group must be initialised"):
        ladder.tensor_parallel(tiny_llama(), None)


@pytest.mark.ranks(2)
def test_a_rank_that_stays_away_is_noticed_within_the_timeout():
    group = dist.new_group(timeout=timedelta(seconds=2))
    model = ladder.tensor_parallel(whole_model(), DeviceMesh.from_group(group, "cpu"))
    if dist.get_rank() == 1:
        time.sleep(5)
        return
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="the all-reduce of the embedding failed on rank 0 of a group of 2"):
        model(**batch(model))
    assert time.monotonic() - start < 4


@pytest.mark.ranks(2)
def test_tokens_and_labels_outside_the_vocabulary():
    model = parallel_model()
    inputs = batch(model)
    with pytest.raises(IndexError, match=r"in \[0, 61\), got 61 to 61"):
        model(torch.tensor([[61]]))
    inputs["labels"][1, 4] = 61
    with pytest.raises(IndexError, match=r"in \[0, 61\)"):
        model(**inputs)


def sharded(logits, world_size):
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(logits, mesh_of(world_size), [Shard(logits.dim() - 1)], src_data_rank=None)


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [5, 61, 64])
def test_the_sharded_loss_is_as_near_as_the_whole_one(world_size, vocab_size, dtype):
    logits = floats((2, 9, vocab_size), dtype, seed=1) * 20
    labels = torch.randint(vocab_size, (2, 9), generator=torch.Generator().manual_seed(2))
    labels[0, 4] = -100
    results = []
    for x in (logits.double(), logits):
        x = x.clone().requires_grad_()
        loss = whole_loss(x.to(torch.promote_types(x.dtype, torch.float32)), labels)
        loss.backward()
        results.append((loss.detach(), x.grad))
    x = sharded(logits, world_size).requires_grad_()
    loss = vocabulary_parallel_loss(x.to_local(), labels, vocab_size, mesh=x.device_mesh)
    loss.backward()
    assert_within_budget(loss.detach(), results[1][0], results[0][0], "loss")
    assert_within_budget(x.grad.full_tensor(), results[1][1], results[0][1], "gradient")


@pytest.mark.ranks(2)
def test_the_options_of_the_loss(world_size):
    logits, labels = floats((2, 9, 61), torch.float64, seed=1), torch.arange(18).view(2, 9)
    labels[1, 3:5] = 7
    x = sharded(logits, world_size)
    for options in (
        {"num_items_in_batch": 11},
        {"num_items_in_batch": torch.tensor(11)},
        {"ignore_index": 7},
        {"shift_labels": labels.flip(1)},
        {"ignore_index": 7, "shift_labels": torch.full_like(labels, 7)},
    ):
        loss = vocabulary_parallel_loss(x.to_local(), labels, 61, mesh=x.device_mesh, **options)
        torch.testing.assert_close(loss, whole_loss(logits, labels, **options), equal_nan=True)
        theirs = ForCausalLMLoss(logits, labels, 61, **options)  # rounds to float32
        torch.testing.assert_close(loss.float(), theirs, equal_nan=True)
