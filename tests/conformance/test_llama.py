"""`models/llama_lm` with adapted weights against a Llama written out in plain torch, and against transformers where that is installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc.runtime.adapt import adapt
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.sampling import load_run
from tests.conformance import llama
from tests.conformance.comparing import assert_close, with_gradients

CONFIGS: dict[str, dict[str, Any]] = {
    "groups of three": {},
    "a head each": {"num_key_value_heads": 6},
    "one group": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "one layer": {"num_hidden_layers": 1, "rms_norm_eps": 1e-6, "rope_parameters": None, "rope_theta": 10000.0},
}
TOKENS = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(5))


def config_of(name: str) -> dict[str, Any]:
    return {**llama.CONFIG, **CONFIGS[name]}


def spec_of(config: dict[str, Any]) -> str:
    return "models/llama_tied_lm" if config["tie_word_embeddings"] else "models/llama_lm"


def expected(config: dict[str, Any], dtype: torch.dtype) -> Tensor:
    theta = config["rope_parameters"] or {"rope_theta": config["rope_theta"]}
    tensors = {name: x.to(dtype) for name, x in llama.weights(config).items()}
    return llama.logits(TOKENS, tensors, {**config, "rope_parameters": theta})


def adapted(config: dict[str, Any], folder: Path, backend: str = "eager") -> CompiledSpec:
    result = adapt(llama.write(folder / "checkpoint", llama.weights(config), config), spec_of(config), "llama", folder / "run")
    compiled = nlc.compile(spec_of(config), result.dims, result.params, backend=backend)
    compiled.load_state_dict(result.compiled.state_dict())
    return compiled


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_a_llama_in_plain_torch(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    wanted = expected(config, torch.float32)

    compiled = adapted(config, tmp_path)

    torch.testing.assert_close(compiled({"tokens": TOKENS})[0]["logits"], wanted, rtol=0, atol=1e-5)
    exact = expected(config, torch.float64)
    torch.testing.assert_close(compiled.double()({"tokens": TOKENS})[0]["logits"], exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_other_backends_have_the_same_logits(backend: str, tmp_path: Path) -> None:
    config = config_of("groups of three")

    compiled = adapted(config, tmp_path, backend).double()

    torch.testing.assert_close(compiled({"tokens": TOKENS})[0]["logits"], expected(config, torch.float64), rtol=0, atol=1e-10)


def test_a_stream_may_be_cut_anywhere(tmp_path: Path) -> None:
    config = config_of("groups of three")
    compiled, made, state = adapted(config, tmp_path).double(), [], None

    for piece in TOKENS.tensor_split((1, 5, 16), 1):
        outputs, state = compiled({"tokens": piece}, state)
        made.append(outputs["logits"])

    torch.testing.assert_close(torch.cat(made, 1), expected(config, torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["groups of three", "tied"])
def test_gradients_are_those_of_a_llama_in_plain_torch(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    compiled = adapted(config, tmp_path).double()
    leaves = {key: x.double().requires_grad_() for key, x in llama.weights(config).items()}
    scores = torch.nn.functional.cross_entropy(llama.logits(TOKENS, leaves, config)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    theirs = torch.autograd.grad(scores, [leaves["model.embed_tokens.weight"], leaves["model.layers.0.mlp.up_proj.weight"]])

    loss, _, _ = compiled.loss({"tokens": TOKENS})

    named = dict(compiled.named_parameters())
    ours = torch.autograd.grad(loss, [named["x.embed.W"], named["h.0.mlp.up"]])
    torch.testing.assert_close(loss, scores, rtol=0, atol=1e-12)
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ["models/llama_lm", "models/llama_tied_lm"])
def test_generated_code_agrees_with_the_reference(spec: str) -> None:
    dims = {"vocab": 300, "d": 12, "layers": 2, "G": 2, "R": 3, "K": 4, "m": 10}
    found: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    for backend, kept in (("eager", found), ("reference", wanted)):
        compiled = nlc.compile(spec, dims, backend=backend).double()
        loss, outputs, _ = compiled.loss({"tokens": TOKENS[:, :7]})
        kept |= with_gradients({**outputs, "loss": loss}, dict(compiled.named_parameters()))

    assert_close(found, wanted, 1e-10)


def test_scores_by_the_table_train_it_from_both_sides() -> None:
    dims = {"vocab": 300, "d": 12, "layers": 1, "G": 1, "R": 2, "K": 4, "m": 8}
    tied = nlc.compile("models/llama_tied_lm", dims, backend="eager")
    first, optimizer = tied.train_step({"tokens": TOKENS})

    for _ in range(20):
        last, optimizer = tied.train_step({"tokens": TOKENS}, optimizer)

    assert "logits.unembed.W" not in dict(tied.named_parameters())
    assert last < first


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers, which nlc does not depend on")
    torch.manual_seed(0)
    known = {key: value for key, value in llama.CONFIG.items() if key not in ("model_type", "tie_word_embeddings")}
    config = transformers.LlamaConfig(**known, tie_word_embeddings=tied, initializer_range=0.1)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "checkpoint")
    with torch.no_grad():
        wanted = theirs(TOKENS).logits

    adapt(tmp_path / "checkpoint", spec_of({"tie_word_embeddings": tied}), "llama", tmp_path / "run")

    torch.testing.assert_close(load_run(tmp_path / "run")({"tokens": TOKENS})[0]["logits"], wanted, rtol=0, atol=1e-5)
