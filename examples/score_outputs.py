"""Step scores from what transformers and vLLM return for a process reward model.

    pip install 'ladderkern[examples]' && python examples/score_outputs.py

A tiny random model of Qwen2.5-Math-PRM's shape: a Qwen2 with a two-class head on every token, read at a separator. vLLM need
not be installed: ``PoolingRequestOutput`` stands for its class of that name, with the fields that are read. Prints a line a
response, and that all ways agree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from ladderkern import prm

STEP, PAD = 9, 0  # <extra_0>, 151651, in Qwen2.5-Math-PRM


class ProcessRewardModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Qwen2Model(Qwen2Config(
            vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, bos_token_id=None, eos_token_id=None, pad_token_id=PAD,
        ))  # fmt: skip
        self.score = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        nn.init.normal_(self.score[2].weight, std=0.3)

    def forward(self, input_ids, attention_mask=None):
        return (self.score(self.model(input_ids, attention_mask).last_hidden_state),)


@dataclass
class PoolingOutput:
    data: Tensor


@dataclass
class PoolingRequestOutput:
    outputs: PoolingOutput
    prompt_token_ids: list[int]


def from_transformers(model, rows):
    """Padded: one batch, steps wherever the separator stands."""
    input_ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)
    logits = model(input_ids, (input_ids != PAD).long())[0]
    return prm.score_steps(*prm.gather_steps_by_token(logits, input_ids, STEP))


def from_vllm_steps(requests):
    """STEP pooling, as vLLM serves Qwen2.5-Math-PRM: data [steps, 2] of each request, after the softmax."""
    data = [request.outputs.data for request in requests]
    offsets = torch.tensor([0, *map(len, data)]).cumsum(0)
    return prm.score_probs(torch.cat(data)[:, 1], offsets)


def from_vllm_tokens(requests):
    """ALL pooling without activation: logits [tokens, 2] of each request, packed."""
    logits = torch.cat([request.outputs.data for request in requests])
    ids = torch.tensor([token for request in requests for token in request.prompt_token_ids])
    cu_seqlens = torch.tensor([0, *(len(request.prompt_token_ids) for request in requests)]).cumsum(0)
    return prm.score_steps(*prm.gather_steps_by_token(logits, ids, STEP, cu_seqlens=cu_seqlens))


def vllm_would_return(model, rows, pooling):
    for row in rows:
        data = model(torch.tensor([row]))[0][0]
        if pooling == "STEP":
            data = data[torch.tensor(row) == STEP].softmax(-1)
        yield PoolingRequestOutput(PoolingOutput(data), row)


def main():
    torch.manual_seed(0)
    model = ProcessRewardModel().eval()
    rows = [[3, 4, 5, STEP, 6, 7, STEP, 8, STEP], [11, 12, STEP], [13, 14, STEP, 15, 16, 17, 18, STEP]]
    with torch.no_grad():
        scores = from_transformers(model, rows)
        steps = from_vllm_steps(list(vllm_would_return(model, rows, "STEP")))
        tokens = from_vllm_tokens(list(vllm_would_return(model, rows, "ALL")))
    for r in range(len(rows)):
        print(f"response {r}: {scores.count[r]} steps, min {scores.min[r]:.4f}, product {scores.product[r]:.4f}, "
              f"first error {scores.first_error[r]}")  # fmt: skip
    for name, other in (("STEP pooling", steps), ("ALL pooling", tokens)):
        difference = max((getattr(scores, key) - getattr(other, key)).abs().max().item() for key in ("prob", "product"))
        print(f"vLLM's {name}: largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
