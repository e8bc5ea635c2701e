"""The backend `iree` agrees with the reference, and says what it cannot do."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.backends.inductor_code import example_inputs
from nlc.backends.iree import TARGETS, module_bytes, target_flags
from nlc.backends.mlir import Lowered, mlir
from nlc.diagnostics import BackendError, UsageError

Tensors = dict[str, Tensor]
OP = "ops/gated_delta_rule"
SMALL = {"H": 2, "K": 8, "V": 8}


def assert_close(made: Tensors, wanted: Tensors) -> None:
    """Equal to 2e-5 of the largest value, at least 1."""
    assert made.keys() == wanted.keys()
    for name, x in made.items():
        right = wanted[name].detach()
        assert (x - right).abs().max() <= 2e-5 * max(1.0, float(right.abs().max())), name


@pytest.mark.iree
@pytest.mark.slow
@pytest.mark.parametrize("tokens", [64, 256])
def test_forward_agrees_with_the_reference(tokens: int) -> None:
    compiled, reference = (nlc.compile(OP, backend=backend) for backend in ("iree", "reference"))
    inputs = example_inputs(compiled.graph, 1, tokens)

    outputs, state = compiled(inputs)

    wanted, wanted_state = reference(inputs)
    assert_close(outputs, wanted)
    assert_close(state, wanted_state)


@pytest.mark.iree
@pytest.mark.slow
def test_steps_of_the_model_agree_with_the_reference() -> None:
    compiled, reference = (nlc.compile("models/gated_delta_lm", backend=backend) for backend in ("iree", "reference"))
    state, wanted_state = compiled.initial_state(1), reference.initial_state(1)
    for token in (5, 3, 200, 7, 99):
        outputs, state = compiled.step({"tokens": torch.tensor([token])}, state)
        wanted, wanted_state = reference.step({"tokens": torch.tensor([token])}, wanted_state)

        assert_close(outputs, wanted)
        assert_close(state, wanted_state)


@pytest.mark.iree
@pytest.mark.slow
def test_a_product_of_many_terms_rounds_as_finely_as_the_reference(tmp_path: Path) -> None:
    spec = tmp_path / "sum.yaml"
    spec.write_text("nlc: 1\nname: sum\ndims: {d: 2048, e: 16}\ninputs: {x: [d]}\noutputs: {y: 'linear(x, e)'}\n", encoding="utf-8")
    compiled, reference = (nlc.compile(spec, backend=backend) for backend in ("iree", "reference"))
    exact = nlc.compile(spec, backend="reference").double()
    inputs = {"x": torch.randn(1, 1, 2048, generator=torch.Generator().manual_seed(0))}

    wanted = exact({"x": inputs["x"].double()})[0]["y"]

    far, near = (float((made(inputs)[0]["y"] - wanted).detach().abs().mean()) for made in (compiled, reference))
    assert far <= 1.2 * near  # added one after the other: 1.43


@pytest.mark.iree
@pytest.mark.slow
def test_a_stream_goes_on_and_each_shape_is_compiled_once() -> None:
    compiled, reference = (nlc.compile(OP, SMALL, backend=backend) for backend in ("iree", "reference"))
    inputs = example_inputs(compiled.graph, 2, 3)

    outputs, state = compiled(inputs, compiled(inputs)[1])

    wanted, wanted_state = reference(inputs, reference(inputs)[1])
    assert_close(outputs, wanted)
    assert_close(state, wanted_state)
    assert [shapes[:2] for shapes in compiled.__dict__["_modules_by_shape"]] == [(2, 3)]


@pytest.mark.iree
@pytest.mark.slow
@pytest.mark.parametrize("op", ["ops/softmax_attention", "ops/sliding_window_attention"])
def test_a_context_that_grows_agrees_with_the_reference(op: str) -> None:
    settings = SMALL | ({"c": 3} if op == "ops/sliding_window_attention" else {})
    compiled, reference = (nlc.compile(op, settings, backend=backend) for backend in ("iree", "reference"))
    inputs = example_inputs(compiled.graph, 1, 5)
    state, wanted_state = compiled.initial_state(1), reference.initial_state(1)

    for t in range(5):
        outputs, state = compiled.step({name: x[:, t] for name, x in inputs.items()}, state)
        wanted, wanted_state = reference.step({name: x[:, t] for name, x in inputs.items()}, wanted_state)

        assert_close(outputs, wanted)
        assert_close(state, wanted_state)


@pytest.mark.iree
@pytest.mark.slow
def test_steps_of_a_transformer_agree_with_the_reference() -> None:
    compiled, reference = (nlc.compile("models/transformer_lm", {"layers": 2}, backend=backend) for backend in ("iree", "reference"))
    tokens = torch.tensor([[5, 3, 200]])

    outputs, state = compiled({"tokens": tokens})
    outputs["next"] = compiled.step({"tokens": tokens[:, 0]}, state)[0]["logits"]

    wanted, wanted_state = reference({"tokens": tokens})
    wanted["next"] = reference.step({"tokens": tokens[:, 0]}, wanted_state)[0]["logits"]
    assert_close(outputs, wanted)
    assert_close(state, wanted_state)


REFUSED = """nlc: 1
name: refused
dims: {d: 8}
inputs: {x: [d]}
flows:
  a: x + 1
  b: l2norm(a)
outputs: {y: b}
"""


@pytest.mark.torch_mlir
def test_torch_mlir_refuses_an_operator_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refused.yaml").write_text(REFUSED, encoding="utf-8")
    compiled = nlc.compile(tmp_path / "refused.yaml", backend="eager")
    generated = next(each.__module__ for each in type(compiled).__mro__ if each.__module__.startswith("nlc_generated_"))
    monkeypatch.setattr(sys.modules[generated], "l2norm", torch.special.bessel_j0)

    with pytest.raises(BackendError, match=r"torch-mlir cannot lower the operator `aten\.special_bessel_j0`") as caught:
        mlir(compiled, "linalg", 1, 2)

    assert str(caught.value.diagnostics[0].span).endswith("refused.yaml:7:3")


@pytest.mark.iree
def test_iree_refuses_an_operator_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "refused.yaml").write_text(REFUSED, encoding="utf-8")
    compiled = nlc.compile(tmp_path / "refused.yaml", backend="eager")
    kind = "!torch.vtensor<[8],f32>"
    call = f'%0 = torch.operator "torch.aten.special_bessel_j0"(%x) : ({kind}) -> {kind}'
    text, located = (
        f"func.func @refused(%x: {kind}) -> {kind} {{\n{call} {place}\nreturn %0 : {kind}\n}}"
        for place in ("", f'loc("{compiled.graph.file}":7:0)')
    )

    with pytest.raises(BackendError, match="IREE for cpu cannot lower the operator `") as caught:
        module_bytes(compiled, Lowered(text, located, (), ()), "cpu")

    assert str(caught.value.diagnostics[0].span).endswith("refused.yaml:7:3")


@pytest.mark.torch_mlir
def test_every_operator_has_its_place_in_the_yaml() -> None:
    lowered = mlir(nlc.compile("models/gated_delta_lm", {"layers": 1}, backend="iree"), "linalg", 1, 1)

    for line in (8, 13, 19, 24):
        assert f'loc("specs/blocks/gated_delta.yaml":{line}:0)' in lowered.located
    assert "loc(" not in lowered.text


@pytest.mark.iree
def test_only_float32_runs() -> None:
    compiled = nlc.compile(OP, SMALL, backend="iree")
    inputs = {name: x.double() for name, x in example_inputs(compiled.graph, 1, 1).items()}

    with pytest.raises(BackendError, match=r"runs float32 on the CPU, not torch\.float64"):
        compiled(inputs)


@pytest.mark.iree
def test_there_are_no_gradients() -> None:
    compiled = nlc.compile("models/gated_delta_lm", backend="iree")

    with pytest.raises(UsageError, match="has no gradients"):
        compiled.train_step({"tokens": torch.zeros(1, 4, dtype=torch.int64)})


@pytest.mark.parametrize("target", ["", "tpu", "rocm", "cuda:", "metal:m1", "cpu:"])
def test_an_unknown_target_lists_the_targets(target: str) -> None:
    with pytest.raises(UsageError) as caught:
        target_flags(target)

    assert all(known in str(caught.value) for known in TARGETS)


def test_a_target_may_name_a_chip() -> None:
    assert target_flags("rocm:gfx942") == ("--iree-hal-target-device=hip", "--iree-rocm-target=gfx942")
