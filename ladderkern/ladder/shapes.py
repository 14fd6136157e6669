"""The sizes of a decoder that decide how long it takes: from a name, an HF config, or a folder that holds one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple


class ModelShape(NamedTuple):
    """One dense decoder. Weights are counted in elements, without norms and biases."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    head_dim: int
    mlp_matrices: int = 3  # gate, up and down; 2 where nothing gates

    @property
    def attention_weights(self) -> int:
        """Of one layer: queries and output, keys and values."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def mlp_weights(self) -> int:
        """Of one layer."""
        return self.mlp_matrices * self.hidden * self.intermediate

    @property
    def head_weights(self) -> int:
        """Of the language model head."""
        return self.hidden * self.vocab


def _shape(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, vocab: int, mlp_matrices: int = 3
) -> ModelShape:
    return ModelShape(name, layers, hidden, heads, kv_heads, intermediate, vocab, hidden // heads, mlp_matrices)


# The models whose speed was published, as the published benchmark builds them (gpt_fast/gpt_dense_TP.py of
# github.com/mayank31398/ladder-residual-inference, commit ea2e9e4), but for Bloom's feed-forward layer and the 405B's keys and
# values, which are the released models'.
MODELS = {
    shape.name: shape
    for shape in (
        _shape("ladder-1b", 40, 1536, 24, 24, 4096, 49152),
        _shape("ladder-3b", 40, 2304, 32, 32, 9216, 49152),
        _shape("llama-3-8b", 32, 4096, 32, 8, 14336, 128256),
        _shape("codellama-34b", 48, 8192, 64, 8, 22016, 32000),
        _shape("llama-3-70b", 80, 8192, 64, 8, 28672, 128256),
        _shape("bloom-176b", 70, 14336, 112, 112, 57344, 250880, 2),
        _shape("llama-3.1-405b", 126, 16384, 128, 8, 53248, 128256),
    )
}
_BY_SIZE = {name.rsplit("-", 1)[1]: name for name in MODELS}
_SAME = {"llama-3-405b": "llama-3.1-405b", "llama-3.1-8b": "llama-3-8b"}
_SAME |= {f"llama-{version}-70b": "llama-3-70b" for version in ("3.1", "3.3")}


def model_shape(model: Any) -> ModelShape:
    """The shape of a model.

    Args:
        model: a ModelShape; the name of one of MODELS or its size ("70b"), in any case; a transformers config; a folder with a
            ``config.json``, or such a file. Nothing is downloaded.

    Raises:
        ValueError: a name that is not known, or a config of a model that is no dense decoder.
    """
    if isinstance(model, ModelShape):
        return model
    if not isinstance(model, str | Path):
        return _of_config(model)
    name = str(model).lower()
    name = _SAME.get(name, _BY_SIZE.get(name, name))
    if name in MODELS:
        return MODELS[name]
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    if path.is_file():
        return _of_config(SimpleNamespace(**json.loads(path.read_text(encoding="utf-8"))))
    raise ValueError(f"model must be a config, a folder that holds a config.json, or one of {', '.join(MODELS)}, got {model!r}")


def _of_config(config: Any) -> ModelShape:
    def read(*names: str) -> Any:
        return next((value for name in names if (value := getattr(config, name, None)) is not None), None)

    kind = read("model_type") or type(config).__name__
    if read("num_local_experts", "num_experts", "n_routed_experts"):
        raise ValueError(f"model must be dense, got a config of the mixture of experts {kind!r}")
    sizes = {
        "layers": read("num_hidden_layers", "n_layer"),
        "hidden": read("hidden_size", "n_embd"),
        "heads": read("num_attention_heads", "n_head"),
        "vocab": read("vocab_size"),
    }
    missing = [name for name, size in sizes.items() if size is None]
    if missing:
        raise ValueError(f"model must have a config of a decoder, got {kind!r} without {', '.join(missing)}")
    gated = read("intermediate_size")
    return ModelShape(
        name=str(read("_name_or_path", "name_or_path") or kind),
        kv_heads=read("num_key_value_heads") or sizes["heads"],
        intermediate=gated or read("n_inner") or 4 * sizes["hidden"],
        head_dim=read("head_dim") or sizes["hidden"] // sizes["heads"],
        mlp_matrices=3 if gated else 2,
        **sizes,
    )
