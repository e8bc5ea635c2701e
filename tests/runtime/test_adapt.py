"""Weights of others in a spec: every tensor in its place, or a message that names it and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import nlc
from nlc.diagnostics import NOWHERE, DataError, Diagnostic, SpecError
from nlc.runtime import run_folder
from nlc.runtime.adapt import AdaptResult, adapt, splits
from nlc.runtime.name_map import Pattern, map_from_text
from nlc.runtime.sampling import load_run, sample
from nlc.runtime.training import train
from tests.conformance import llama

SPEC = """
nlc: 1
name: small
dims: {d: 4, H: 2, K: 3}
params: {scale: 1}
inputs: {x: [d]}
flows: {q: "scale * linear(rmsnorm(x), [H, K])"}
outputs: {o: q}
"""
MAP = """
nlc: 1
name: small
dims: {d: width, K: [head, width / 2]}
params: {scale: factor}
require: {kind: small}
tensors:
  norm.weight: q.rmsnorm.gain
  proj.weight: {to: q.linear.W, axes: [1, 0]}
"""
TENSORS = {"norm.weight": torch.tensor([1.0, 2, 3, 4]), "proj.weight": torch.arange(24.0).view(6, 4)}
CONFIG = {"kind": "small", "width": 4, "head": 3, "factor": 0.5}


def checkpoint(folder: Path, tensors: dict[str, Tensor] = TENSORS, config: dict[str, Any] | None = CONFIG) -> Path:
    return llama.write(folder / "checkpoint", tensors, config)


def made(
    tmp_path: Path,
    weights: Path | None = None,
    text: str = MAP,
    spec: str = SPEC,
    **options: Any,
) -> AdaptResult:
    return adapt(weights or checkpoint(tmp_path), spec_file(tmp_path, spec), map_from_text(text, "names.yaml"), tmp_path / "run", **options)


def spec_file(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(tmp_path: Path, *arguments: Any, **options: Any) -> Diagnostic:
    """The first message; nothing may be left behind."""
    before = {*tmp_path.iterdir(), tmp_path / "checkpoint", tmp_path / "spec.yaml"}
    with pytest.raises(SpecError) as error:
        made(tmp_path, *arguments, **options)
    assert {*tmp_path.iterdir()} <= before
    assert "names.yaml" not in error.value.diagnostics[0].span.file or "^" in str(error.value)
    return error.value.diagnostics[0]


# -- what becomes of tensors --------------------------------------------------------------------------------------------


def test_axes_are_turned_and_split(tmp_path: Path) -> None:
    result = made(tmp_path)

    parameters = dict(load_run(tmp_path / "run").named_parameters())
    assert torch.equal(parameters["q.rmsnorm.gain"], TENSORS["norm.weight"])
    assert torch.equal(parameters["q.linear.W"], TENSORS["proj.weight"].view(2, 3, 4).permute(2, 0, 1))
    assert (result.dims, result.params) == ({"d": 4, "K": 3}, {"scale": 0.5})
    assert result.tensors == {"q.rmsnorm.gain": "norm.weight", "q.linear.W": "proj.weight"}


def test_adapted_weights_are_those_set_by_hand(tmp_path: Path) -> None:
    tensors = llama.weights()
    folder = llama.write(tmp_path / "checkpoint", tensors)
    result = adapt(folder, "models/llama_lm", "llama", tmp_path / "run")
    by_hand = nlc.compile("models/llama_lm", result.dims, result.params, backend="eager", seed=9)
    tokens = torch.randint(0, 300, (2, 12))
    G, R, K = (result.dims[name] for name in "GRK")
    state = {"x.embed.W": tensors["model.embed_tokens.weight"], "logits.rmsnorm.gain": tensors["model.norm.weight"]}
    state["logits.unembed.W"] = tensors["lm_head.weight"].T
    for i in range(2):
        theirs, ours = f"model.layers.{i}", f"h.{i}"
        state[f"{ours}.u.rmsnorm.gain"] = tensors[f"{theirs}.input_layernorm.weight"]
        state[f"{ours}.n.rmsnorm.gain"] = tensors[f"{theirs}.post_attention_layernorm.weight"]
        state[f"{ours}.q.linear.W"] = tensors[f"{theirs}.self_attn.q_proj.weight"].T.reshape(-1, G, R, K)
        state[f"{ours}.k.linear.W"] = tensors[f"{theirs}.self_attn.k_proj.weight"].T.reshape(-1, G, K)
        state[f"{ours}.v.linear.W"] = tensors[f"{theirs}.self_attn.v_proj.weight"].T.reshape(-1, G, K)
        state[f"{ours}.mixed.linear.W"] = tensors[f"{theirs}.self_attn.o_proj.weight"].T.reshape(G, R, K, -1)
        state |= {f"{ours}.mlp.{name}": tensors[f"{theirs}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down")}
    by_hand.load_state_dict(state)

    outputs, _ = load_run(tmp_path / "run")({"tokens": tokens})

    assert torch.equal(outputs["logits"], by_hand({"tokens": tokens})[0]["logits"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_taken_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: (0.3 * x).to(dtype) for name, x in TENSORS.items()}

    result = made(tmp_path, checkpoint(tmp_path, tensors))

    gain = dict(result.compiled.named_parameters())["q.rmsnorm.gain"]
    assert gain.dtype == torch.float32
    assert torch.equal(gain, tensors["norm.weight"].float())


def test_a_file_alone_has_the_dims_of_the_spec(tmp_path: Path) -> None:
    file = checkpoint(tmp_path) / "model.safetensors"

    result = made(tmp_path, file, params={"scale": 0.25})

    assert (result.dims, result.params) == ({}, {"scale": 0.25})
    assert len(result.notes) == 1


def test_given_dims_replace_those_of_the_config(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, config={**CONFIG, "width": 99, "head": None})

    result = made(tmp_path, folder, dims={"d": 4, "K": 3})

    assert result.dims == {"d": 4, "K": 3}


def test_parts_of_a_checkpoint_are_one(tmp_path: Path) -> None:
    whole = adapt(llama.write(tmp_path / "one", llama.weights()), "models/llama_lm", "llama", tmp_path / "run")

    parts = adapt(llama.write_shards(tmp_path / "three", llama.weights()), "models/llama_lm", "llama", tmp_path / "run_2")

    assert (whole.files, parts.files) == (1, 3)
    theirs = parts.compiled.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in whole.compiled.state_dict().items())


def test_a_linked_file_is_followed(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")

    assert len(made(tmp_path, folder).tensors) == 2


LEARNING = """
nlc: 1
name: learning
dims: {d: 4, m: 6}
inputs: {x: [d]}
levels:
  some:
    LEVEL
outputs: {o: "x + mlp(x) + M(x)"}
"""
STILL = """learners:
      mlp: {store: {gated_mlp: [d, m, d]}, init: learned}
      M: {store: {matrix: [d, d]}, init: learned}"""
MOVING = """every: 4 tokens
    learners:
      mlp: {store: {gated_mlp: [d, m, d]}, init: learned, learn: {key: x, value: x, fold: each, rate: 0.1}}
      M: {store: {matrix: [d, d]}, init: learned, learn: {key: x, value: x, fold: each, rate: 0.1}}"""
BLOCK = """
nlc: 1
name: block
tensors:
  ffn.gate.weight: mlp.gate
  ffn.up.weight: mlp.up
  ffn.down.weight: mlp.down
  m.weight: M.W
"""


def test_the_weights_of_a_learner_in_context_are_its_first_state(tmp_path: Path) -> None:
    """The same map serves a function that nothing writes and one that learns: its weights are where it begins."""
    shapes = {"ffn.gate.weight": (6, 4), "ffn.up.weight": (6, 4), "ffn.down.weight": (4, 6), "m.weight": (4, 4)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    folder, names, x = checkpoint(tmp_path, tensors), map_from_text(BLOCK, "names.yaml"), torch.randn(1, 3, 4)
    outputs = {}

    for word, level in (("still", STILL), ("moving", MOVING)):
        result = adapt(folder, spec_file(tmp_path, LEARNING.replace("LEVEL", level)), names, tmp_path / word)
        outputs[word] = load_run(tmp_path / word)({"x": x})[0]["o"]
        assert torch.equal(dict(result.compiled.named_parameters())["mlp.gate" + ".init" * (word == "moving")], tensors["ffn.gate.weight"])

    assert {"mlp.gate.init", "mlp.up.init", "mlp.down.init", "M.init"} == {*result.tensors}
    assert not torch.equal(outputs["still"], outputs["moving"])


def test_mlps_of_a_checkpoint_go_on_a_level(tmp_path: Path) -> None:
    """Ad-hoc level stacking (Nested Learning, section 7.3): a rate of 0 is the frozen network, to the bit where it is folded."""
    folder, tokens = llama.write(tmp_path / "checkpoint", llama.weights()), torch.randint(0, 300, (2, 33))
    outputs = {}
    for word, spec, rate in (("plain", "llama_lm", None), ("frozen", "llama_level_lm", 0.0), ("learning", "llama_level_lm", 0.01)):
        given: dict[str, Any] = {} if rate is None else {"params": {"rate": rate}, "dims": {"period": 8}}
        result = adapt(folder, f"models/{spec}", "llama", tmp_path / word, **given)
        outputs[word] = load_run(tmp_path / word)({"tokens": tokens})[0]["logits"]
        if word == "frozen":
            unfolded = nlc.compile(f"models/{spec}", result.dims, result.params, "eager", without=("fold-constants",))
            unfolded.load_state_dict({f"{k}.init" if ".mlp." in k else k: x for k, x in result.compiled.state_dict().items()})
            outputs["unfolded"] = unfolded.double()({"tokens": tokens})[0]["logits"]
            outputs["in float64"] = load_run(tmp_path / "plain").double()({"tokens": tokens})[0]["logits"]

    assert torch.equal(outputs["plain"], outputs["frozen"])
    assert torch.allclose(outputs["in float64"], outputs["unfolded"], rtol=0, atol=1e-12)
    assert torch.allclose(outputs["plain"][:, :8], outputs["learning"][:, :8], rtol=0, atol=1e-5)
    assert not torch.allclose(outputs["plain"][:, 9:], outputs["learning"][:, 9:], rtol=0, atol=1e-4)


# -- runs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    adapt(llama.write(folder / "checkpoint", llama.weights()), "models/llama_lm", "llama", folder / "run")
    return folder / "run"


def test_an_adapted_run_is_sampled(run: Path) -> None:
    assert len(sample(run, "a", tokens=3)) == 3


def test_another_run_begins_with_its_weights(run: Path, tmp_path: Path) -> None:
    source = run_folder.source_of(run)
    weights = {name: x.clone() for name, x in load_run(run).named_parameters()}

    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox. " * 40, encoding="utf-8")
    options: dict[str, Any] = {"text": text, "steps": 1, "length": 8, "batch": 1, "backend": "eager", "dims": source.dims}
    result = train("models/llama_lm", begin=run, out=tmp_path / "run", params=source.params, **options)

    moved = [name for name, x in result.compiled.named_parameters() if not torch.equal(x, weights[name])]
    assert moved
    for name, x in result.compiled.named_parameters():
        torch.testing.assert_close(x, weights[name], rtol=0, atol=0.01)


def test_an_adapted_run_has_no_training_to_go_on_with(run: Path) -> None:
    source = run_folder.source_of(run)

    with pytest.raises(DataError) as error:
        train("models/llama_lm", __file__, out=run, steps=1, length=8, resume=True, backend="eager", dims=source.dims, params=source.params)

    assert error.value.diagnostics[0].code == "NLC725"
    assert "--from" in str(error.value)


def test_an_adapted_run_has_no_average_yet(tmp_path: Path) -> None:
    spec = "models/averaged_lm"
    dims = {"d": 32, "layers": 1}
    tensors = {name: x.detach().clone() for name, x in nlc.compile(spec, dims, backend="eager").named_parameters()}
    text = "nlc: 1\nname: same\ntensors:\n" + "".join(f"  {name}: {name}\n" for name in tensors)
    adapt(checkpoint(tmp_path, tensors), spec, map_from_text(text, "names.yaml"), tmp_path / "run", dims=dims)

    with pytest.raises(DataError) as error:
        load_run(tmp_path / "run", read="moving")

    assert error.value.diagnostics[0].code == "NLC720"


# -- what does not fit --------------------------------------------------------------------------------------------------


def with_tensors(**more: Tensor) -> dict[str, Tensor]:
    return {**TENSORS, **{name.replace("__", "."): x for name, x in more.items()}}


NAMES: dict[str, tuple[dict[str, Tensor], str, str, str]] = {
    "a tensor without a place": (with_tensors(extra=torch.ones(2)), MAP, "NLC741", "`extra`"),
    "a parameter without a tensor": ({"norm.weight": TENSORS["norm.weight"]}, MAP, "NLC741", "`q.linear.W`"),
    "two tensors for one parameter": (
        with_tensors(b=torch.ones(4)),
        MAP.replace("  norm.weight", "  b: q.rmsnorm.gain\n  norm.weight"),
        "NLC741",
        "`b` and `norm.weight`",
    ),
    "one tensor of two patterns": (
        TENSORS,
        MAP.replace("  norm.weight", '  "{i}.weight": "{i}.W"\n  norm.weight'),
        "NLC741",
        "two patterns",
    ),
    "a tensor that is taken and ignored": (TENSORS, f"{MAP}ignore: [norm.weight]\n", "NLC741", "two patterns"),
    "a parameter the spec lacks": (TENSORS, MAP.replace("q.rmsnorm.gain", "q.norm.gain"), "NLC741", "`q.rmsnorm.gain`"),
    "a parameter that is given and fresh": (TENSORS, f"{MAP}fresh: [q.linear.W]\n", "NLC741", "`q.linear.W`"),
    "another shape": ({**TENSORS, "norm.weight": torch.ones(5)}, MAP, "NLC742", "[5]"),
    "axes in another order": (TENSORS, MAP.replace(", axes: [1, 0]", ""), "NLC742", "[6, 4]"),
    "too many axes": (TENSORS, MAP.replace("[1, 0]", "[2, 1, 0]"), "NLC742", "`axes`"),
    "whole numbers": ({**TENSORS, "norm.weight": torch.ones(4, dtype=torch.int8)}, MAP, "NLC742", "I8"),
    "numbers that are too long": ({**TENSORS, "norm.weight": torch.ones(4).double()}, MAP, "NLC742", "F64"),
    "numbers that are not finite": ({**TENSORS, "norm.weight": torch.tensor([1, 2, 3, float("nan")])}, MAP, "NLC742", "`norm.weight`"),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_named(name: str, tmp_path: Path) -> None:
    tensors, text, code, words = NAMES[name]

    problem = refused(tmp_path, checkpoint(tmp_path, tensors), text)

    assert problem.code == code
    assert words in f"{problem.message} {problem.help}"


def test_all_that_is_missing_is_counted(tmp_path: Path) -> None:
    problem = refused(tmp_path, checkpoint(tmp_path, with_tensors(**{f"more{i}": torch.ones(1) for i in range(9)})))

    assert "and 5 more" in problem.message


def test_parameters_may_be_fresh_and_tensors_ignored(tmp_path: Path) -> None:
    text = MAP.replace("  norm.weight: q.rmsnorm.gain\n", "") + 'ignore: [norm.weight]\nfresh: ["q.{kind}.gain"]\n'

    result = made(tmp_path, text=text)

    assert {*result.tensors} == {"q.linear.W"}
    assert run_folder.read_config(tmp_path / "run")["adapted"]["fresh"] == ["q.rmsnorm.gain"]


TIED = MAP.replace("  proj.weight: {to: q.linear.W, axes: [1, 0]}", "  proj.weight: {to: q.linear.W, axes: [1, 0], else: other}")


def test_another_tensor_may_stand_in_for_one_that_is_missing(tmp_path: Path) -> None:
    tensors = {"norm.weight": TENSORS["norm.weight"], "other": TENSORS["proj.weight"]}

    result = made(tmp_path, checkpoint(tmp_path, tensors), f"{TIED}ignore: [other]\n")

    assert result.tensors["q.linear.W"] == "other"
    assert result.notes == ["`other` is `q.linear.W` too"]


def test_neither_the_one_nor_the_other_is_an_error(tmp_path: Path) -> None:
    problem = refused(tmp_path, checkpoint(tmp_path, {"norm.weight": TENSORS["norm.weight"]}), TIED)

    assert (problem.code, "neither" in problem.message) == ("NLC741", True)


CONFIGS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "another model": ({**CONFIG, "kind": "other"}, MAP, "NLC743", "kind: other"),
    "a truth value is no number": ({**CONFIG, "kind": True}, MAP.replace("kind: small", "kind: 1"), "NLC743", "kind: true"),
    "a missing number": ({"kind": "small", "width": 4, "head": 3}, MAP, "NLC743", "`factor`"),
    "none of several": ({**CONFIG, "head": None}, MAP.replace("width / 2", "none"), "NLC743", "neither"),
    "no number": ({**CONFIG, "width": "four"}, MAP, "NLC743", "`width` is four"),
    "a division by zero": ({**CONFIG, "factor": 0}, MAP.replace("factor", "1 / factor"), "NLC743", "zero"),
    "a size that is no whole number": ({**CONFIG, "head": None, "width": 5}, MAP, "NLC303", "2.5"),
    "a dim the spec lacks": (CONFIG, MAP.replace("K: [head", "Q: [head"), "NLC743", "`Q`"),
    "a param the spec lacks": (CONFIG, MAP.replace("scale: factor", "scales: factor"), "NLC743", "`scales`"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    config, text, code, words = CONFIGS[name]

    problem = refused(tmp_path, checkpoint(tmp_path, config=config), text)

    assert problem.code == code
    assert words in problem.message


def test_a_key_that_the_config_does_not_have_is_not_asked(tmp_path: Path) -> None:
    made(tmp_path, checkpoint(tmp_path, config={key: value for key, value in CONFIG.items() if key != "kind"}))


# -- what cannot be read ------------------------------------------------------------------------------------------------


def spoiled(folder: Path, spoil: Callable[[Path], object]) -> Path:
    spoil(folder)
    return folder


def rewrite(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / name).read_text(encoding="utf-8"))
        change(document)
        (folder / name).write_text(json.dumps(document), encoding="utf-8")

    return spoil


INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"
PARTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing part": (lambda folder: (folder / FIRST).unlink(), FIRST),
    "a part outside the folder": (rewrite(INDEX, lambda d: d["weight_map"].update({"norm.weight": "../secret.safetensors"})), "../secret"),
    "a part by its full path": (rewrite(INDEX, lambda d: d["weight_map"].update({"norm.weight": str(Path("/x.safetensors"))})), "/x"),
    "a part above": (rewrite(INDEX, lambda d: d["weight_map"].update({"norm.weight": ".."})), "`..`"),
    "a tensor that its part lacks": (rewrite(INDEX, lambda d: d["weight_map"].update({"lost": FIRST})), "`lost`"),
    "a tensor that the index lacks": (lambda folder: save_file({**TENSORS, "more": torch.ones(1)}, folder / FIRST), "disagree"),
    "no map in the index": (rewrite(INDEX, lambda d: d.pop("weight_map")), "weight_map"),
    "an index that is no JSON": (lambda folder: (folder / INDEX).write_text("{", encoding="utf-8"), "JSON"),
    "both forms": (lambda folder: save_file(TENSORS, folder / "model.safetensors"), "both"),
    "a config that is no JSON": (lambda folder: (folder / "config.json").write_text("[1]", encoding="utf-8"), "JSON"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "one tensor in two parts": (
        lambda folder: save_file(TENSORS, folder / FIRST),
        "disagree",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_damaged_checkpoints_are_refused(name: str, tmp_path: Path) -> None:
    spoil, words = PARTS[name]
    folder = llama.write_shards(tmp_path / "checkpoint", TENSORS, 2, CONFIG)

    problem = refused(tmp_path, spoiled(folder, spoil))

    assert problem.code == "NLC740"
    assert words in problem.message


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (lambda folder: folder / "nothing.safetensors", "there is no"),
    "an empty folder": (lambda folder: folder, "neither"),
    "text": (lambda folder: _written(folder / "a.safetensors", b"hello, these are no weights"), "safetensors"),
    "an empty file": (lambda folder: _written(folder / "a.safetensors", b""), "safetensors"),
    "a cut file": (lambda folder: _cut(folder / "a.safetensors"), "safetensors"),
    "a pickle": (lambda folder: _written(folder / "pytorch_model.bin", b"\x80\x02}q\x00."), "pickled"),
    "a folder of pickles": (lambda folder: _written(folder / "pytorch_model.bin", b"\x80\x02}q\x00.").parent, "pickled"),
    "no tensor": (lambda folder: _saved(folder / "a.safetensors"), "no tensor"),
}


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _cut(path: Path) -> Path:
    save_file(TENSORS, path)
    return _written(path, path.read_bytes()[:-8])


def _saved(path: Path) -> Path:
    save_file({}, path)
    return path


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    make, words = FILES[name]
    (tmp_path / "checkpoint").mkdir()

    problem = refused(tmp_path, make(tmp_path / "checkpoint"))

    assert problem.code == "NLC740"
    assert words in problem.message


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    made(tmp_path)
    config = (tmp_path / "run" / "config.json").read_bytes()

    problem = refused(tmp_path, tmp_path / "checkpoint")

    assert problem.code == "NLC721"
    assert (tmp_path / "run" / "config.json").read_bytes() == config


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path)

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(Path, "rename", full)
    problem = refused(tmp_path, folder)

    assert problem.code == "NLC801"


def test_an_empty_folder_may_become_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()

    made(tmp_path)

    assert (tmp_path / "run" / "LATEST").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "run", "spec.yaml"]


# -- maps ---------------------------------------------------------------------------------------------------------------

MAPS = {
    "an unknown key": (f"{MAP}tensor: {{}}\n", "NLC101", "`tensor`"),
    "no tensors": ("nlc: 1\nname: x\n", "NLC102", "`tensors`"),
    "no version": ("name: x\ntensors: {a: b}\n", "NLC102", "`nlc`"),
    "another version": (MAP.replace("nlc: 1", "nlc: 2"), "NLC105", "2"),
    "a list for a map": (MAP.replace("require: {kind: small}", "require: [kind]"), "NLC103", "a list"),
    "no map at all": ("- a\n", "NLC103", "a list"),
    "a key of a rule": (MAP.replace("axes:", "axis:"), "NLC101", "`axis`"),
    "a rule without `to`": (MAP.replace("to: q.linear.W, ", ""), "NLC102", "`to`"),
    "a number for a name": (MAP.replace("norm.weight: q.rmsnorm.gain", "norm.weight: 3"), "NLC103", "a number"),
    "axes that are none": (MAP.replace("[1, 0]", "[1, 1]"), "NLC744", "axes"),
    "axes that are words": (MAP.replace("[1, 0]", "turned"), "NLC744", "axes"),
    "a slot of the parameter alone": (MAP.replace("q.rmsnorm.gain", '"q.{i}.gain"'), "NLC744", "`{i}`"),
    "a slot of the tensor alone": (MAP.replace("  norm.weight", '  "norm.{i}"'), "NLC744", "`{i}`"),
    "a slot without a word": (MAP.replace("  norm.weight", '  "norm.{}"'), "NLC744", "no pattern"),
    "a slot that is not closed": (f'{MAP}ignore: ["a.{{i"]\n', "NLC744", "no pattern"),
    "one slot twice": (f'{MAP}ignore: ["{{i}}.{{i}}"]\n', "NLC744", "no pattern"),
    "a pattern that is a number": (f"{MAP}fresh: [3]\n", "NLC103", "a number"),
    "else with a slot": (MAP.replace("  norm.weight: q.rmsnorm.gain", '  "n.{i}": {to: "q.{i}", else: b}'), "NLC744", "`else`"),
    "a call in a number": (MAP.replace("d: width", "d: exp(width)"), "NLC744", "exp"),
    "a power in a number": (MAP.replace("d: width", "d: width ^ 2"), "NLC744", "width ^ 2"),
    "a requirement that is a list": (MAP.replace("kind: small", "kind: [small]"), "NLC103", "a list"),
    "a key twice": (f"{MAP}name: again\n", "NLC011", "name"),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_wrong_map_is_refused_with_its_place(name: str) -> None:
    text, code, words = MAPS[name]

    with pytest.raises(SpecError) as error:
        map_from_text(text, "names.yaml")

    problem = error.value.diagnostics[0]
    assert problem.code == code, str(error.value)
    assert words in problem.message
    assert problem.span.file == "names.yaml"
    assert error.value.exit_code == 1


def test_a_slot_is_one_part_of_a_name() -> None:
    pattern = Pattern("model.layers.{i}.{name}.weight", NOWHERE)

    assert pattern.match("model.layers.10.mlp.weight") == {"i": "10", "name": "mlp"}
    assert pattern.match("model.layers.1.mlp.up.weight") is None
    assert pattern.match("model_layers.1.mlp.weight") is None


@pytest.mark.parametrize(
    ("shape", "other", "fits"),
    [
        ((24, 4), (2, 3, 4, 4), True),
        ((2, 3, 4), (24,), True),
        ((4, 1, 3), (4, 3), True),
        ((6, 4), (4, 6), False),
        ((6,), (4,), False),
        ((6, 4), (2, 12), False),
        ((), (1,), True),
        ((2, 6), (3, 4), False),
    ],
)
def test_axes_are_split_and_joined_and_nothing_else(shape: tuple[int, ...], other: tuple[int, ...], fits: bool) -> None:
    assert splits(shape, other) == fits
