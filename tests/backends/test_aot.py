"""A package of AOTInductor runs without nlc and gives what the reference gives."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.backends.aot import package, require_target
from nlc.backends.inductor_code import example_inputs
from nlc.diagnostics import BackendError, UsageError
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.compiling import compile_graph
from nlc.runtime.sampling import load_run
from nlc.runtime.training import train
from tests.cli.running import nlc as command
from tests.cli.running import spec_file

Tensors = dict[str, Tensor]
TOLERANCE = 2e-5
STATES = """nlc: 1
name: states
dims: {K: 4, V: 4}
inputs: {q: [K], k: [K], v: [V]}
levels:
  fast:
    every: 1 token
    learners:
      A: {store: {vector: [V]}, learn: {key: k, value: v, solve: exact, over: 4 tokens, weight: "exp(0.5 * dot(query, key))"}}
  slow:
    every: 2 tokens
    learners:
      B: {store: {matrix: [K, V]}, init: learned, learn: {key: k, value: v, rate: 0.1, fold: each}}
outputs: {o: A(q) + B(q)}
"""

# Runs the stream twice: in calls of `forward`, and token by token.
RUN = """
import json, sys
sys.modules["nlc"] = None
import torch
from torch.export.pt2_archive._package import load_pt2

models = load_pt2(sys.argv[1]).aoti_runners
stream = torch.load(sys.argv[2])
made = {}
for name, model in models.items():
    about = model.get_metadata()
    arguments = json.loads(about["arguments"])
    results = json.loads(about["results"])
    outputs = [x["name"] for x in results if x["kind"] == "output"]
    states = [x for x in arguments if x["kind"] == "state"]
    state = {x["name"]: torch.tensor(x["start"]).expand([n or 0 for n in x["shape"]]).contiguous() for x in states}
    tokens = arguments[0]["shape"][1] if name == "forward" else 1
    parts = []
    for begin in range(0, stream[arguments[0]["name"]].shape[1], tokens):
        inputs = {key: x[:, begin:begin + tokens] if name == "forward" else x[:, begin] for key, x in stream.items()}
        given = [({**inputs, **state})[x["name"]].contiguous() for x in arguments]
        values = dict(zip([(x["kind"], x["name"]) for x in results], model(*given), strict=True))
        state = {key: values["state", key] for key in state}
        parts.append({key: values["output", key] if name == "forward" else values["output", key].unsqueeze(1) for key in outputs})
    made[name] = ({key: torch.cat([part[key] for part in parts], 1) for key in outputs}, state)
torch.save(made, sys.argv[3])
"""


def assert_runs_like(file: Path, reference: CompiledSpec, batch: int, tokens: int) -> None:
    """Two calls of `forward`, and as many tokens through `step`, give what the reference gives in float64 for all of it at once."""
    inputs = example_inputs(reference.graph, batch, 2 * tokens)
    torch.save(inputs, file.with_name("stream"))
    command = [sys.executable, "-I", "-c", RUN, str(file), str(file.with_name("stream")), str(file.with_name("made"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = reference.double()({name: x.double() if x.is_floating_point() else x for name, x in inputs.items()})
    made = torch.load(file.with_name("made"))
    assert made.keys() == {"forward", "step"}
    for model, tensors in made.items():
        for kind, right in zip(tensors, wanted, strict=True):
            assert kind.keys() == right.keys()
            for name, x in kind.items():
                assert x.shape == right[name].shape
                assert (x - right[name]).abs().max() <= TOLERANCE * right[name].abs().max(), f"{name} of {model}"


@pytest.mark.inductor
@pytest.mark.slow
def test_a_memory_runs_without_nlc(tmp_path: Path) -> None:
    file, dims = tmp_path / "rule.pt2", {"H": 2, "K": 8, "V": 8}

    ran = command("export", "ops/gated_delta_rule", "--as", "pt2", *settings(dims), "--tokens", "20", "--batch", "2", "-o", file, "--json")

    assert ran.code == 0, ran.err
    assert ran.json["bytes"] == file.stat().st_size
    assert ran.json["load_ms"] > 0
    assert ran.json["weights"] == "none"
    assert ran.json["models"]["forward"]["arguments"][0] == "input q [2, 20, 2, 8]"
    assert ran.json["models"]["step"]["arguments"][-1] == "state S [2, 2, 8, 8]"
    assert ran.json["models"]["step"]["results"] == ["output o", "state S"]
    assert {path.name for path in tmp_path.iterdir()} == {"rule.pt2"}
    assert_runs_like(file, nlc.compile("ops/gated_delta_rule", dims, backend="reference"), 2, 20)


@pytest.mark.inductor
@pytest.mark.slow
def test_a_model_runs_without_nlc_with_the_weights_of_a_run(tmp_path: Path) -> None:
    model, run, file, dims = "models/gated_delta_lm", tmp_path / "run", tmp_path / "model.pt2", {"d": 16, "layers": 1}
    train(model, steps=2, out=run, dims=dims, batch=2, length=16, backend="eager", eval_bytes=64, threads=1)

    ran = command("export", model, "--as", "pt2", *settings(dims), "--run", run, "--tokens", "4", "-o", file)

    assert ran.code == 0, ran.err
    assert "step -> output logits, state h.0.S, state h.0.q.conv, " in ran.out
    assert "  input tokens [1, 4]\n" in ran.out
    assert f"wrote {file}: " in ran.err
    assert "weights: run at step 2" in ran.err
    assert_runs_like(file, load_run(run, "reference"), 1, 4)


@pytest.mark.inductor
@pytest.mark.slow
def test_states_that_start_from_weights_grow_or_count_are_carried(tmp_path: Path) -> None:
    file = tmp_path / "states.pt2"

    ran = command("export", spec_file(tmp_path, STATES), "--as", "pt2", "--seed", "3", "--tokens", "3", "-o", file)

    assert ran.code == 0, ran.err
    assert "  state A.keys [1, n, 4]\n" in ran.out
    assert "  state position []\n" in ran.out
    assert_runs_like(file, nlc.compile(tmp_path / "small.yaml", backend="reference", seed=3), 1, 3)


def settings(dims: dict[str, int]) -> list[str]:
    return [text for name, size in dims.items() for text in ("--set", f"{name}={size}")]


@pytest.mark.inductor
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled:UserWarning")  # what it says when caches are off
def test_what_the_compiler_says_is_a_backend_error() -> None:
    from torch._inductor import config

    compiled = nlc.compile("ops/linear_attention", {"H": 1, "K": 4, "V": 4}, backend="eager")
    compiled = compile_graph(compiled.graph, compiled.stages, "eager", 0, export=True)

    with config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}), pytest.raises(BackendError) as error:
        package(compiled, 1, 2, "none")

    assert error.value.diagnostics[0].code == "NLC704"


@pytest.mark.parametrize("target", ["cuda:sm_90", "cuda", "cpu:host", "tpu"])
def test_only_the_cpu_is_a_target(target: str) -> None:
    with pytest.raises(UsageError, match=f"`--as pt2` has no target `{target}`, only cpu"):
        require_target(target)


def test_a_compiler_that_is_missing_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")

    ran = command("export", "ops/delta_rule", "--as", "pt2", "-o", tmp_path / "rule.pt2")

    assert ran.code == 3
    assert "error[NLC704]: no C++ compiler was found" in ran.err
    assert not list(tmp_path.iterdir())
