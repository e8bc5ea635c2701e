"""A Llama in plain torch, by the formulas of Hugging Face's modeling_llama.py, and checkpoints of it with random weights. No nlc."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}


def weights(config: dict[str, Any] = CONFIG, seed: int = 0) -> Tensors:
    """Random weights under the names of Hugging Face, in float32; a tied model has no `lm_head`."""
    d, m, K = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, groups = config["num_attention_heads"] * K, config["num_key_value_heads"] * K
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, shape in (("q_proj", (heads, d)), ("k_proj", (groups, d)), ("v_proj", (groups, d)), ("o_proj", (d, heads))):
            shapes[f"{layer}.self_attn.{name}.weight"] = shape
        for name, shape in (("gate_proj", (m, d)), ("up_proj", (m, d)), ("down_proj", (d, m))):
            shapes[f"{layer}.mlp.{name}.weight"] = shape
        shapes |= {f"{layer}.input_layernorm.weight": (d,), f"{layer}.post_attention_layernorm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        if len(shape) > 1
        else 1 + 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def write(folder: Path, tensors: Tensors, config: dict[str, Any] | None = CONFIG) -> Path:
    """The folder of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


def write_shards(folder: Path, tensors: Tensors, parts: int = 3, config: dict[str, Any] = CONFIG) -> Path:
    """The same in several files, with their index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    places: dict[str, str] = {}
    for i in range(parts):
        file = f"model-{i + 1:05}-of-{parts:05}.safetensors"
        mine = dict(list(tensors.items())[i::parts])
        save_file({name: x.contiguous() for name, x in mine.items()}, folder / file)
        places |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return folder


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def logits(tokens: Tensor, w: Tensors, config: dict[str, Any] = CONFIG) -> Tensor:
    """tokens [B, T] -> [B, T, vocabulary], in the dtype of the weights."""
    B, T = tokens.shape
    H, G, K, eps = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"], config["rms_norm_eps"]
    h = w["model.embed_tokens.weight"][tokens]
    inv_freq = 1.0 / (config["rope_parameters"]["rope_theta"] ** (torch.arange(0, K, 2, dtype=h.dtype) / K))
    angles = torch.arange(T, dtype=h.dtype).unsqueeze(1) * inv_freq
    both = torch.cat((angles, angles), dim=-1)
    cos, sin = both.cos(), both.sin()
    mask = torch.full((T, T), float("-inf"), dtype=h.dtype).triu(1)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        x = rms_norm(h, w[f"{layer}.input_layernorm.weight"], eps)
        q, k, v = (
            F.linear(x, w[f"{layer}.self_attn.{name}_proj.weight"]).view(B, T, heads, K).transpose(1, 2)
            for name, heads in (("q", H), ("k", G), ("v", G))
        )
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
        scores = torch.softmax(q @ k.transpose(2, 3) * K**-0.5 + mask, dim=-1)
        answers = (scores @ v).transpose(1, 2).reshape(B, T, H * K)
        h = h + F.linear(answers, w[f"{layer}.self_attn.o_proj.weight"])
        x = rms_norm(h, w[f"{layer}.post_attention_layernorm.weight"], eps)
        gate, up = (F.linear(x, w[f"{layer}.mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        h = h + F.linear(F.silu(gate) * up, w[f"{layer}.mlp.down_proj.weight"])
    h = rms_norm(h, w["model.norm.weight"], eps)
    return F.linear(h, w["model.embed_tokens.weight"] if config["tie_word_embeddings"] else w["lm_head.weight"])
