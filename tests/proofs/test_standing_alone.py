"""Proofs that compiled means compiled: the generated module stands alone, its graph does not grow, nothing is changed in place."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.backends.torch_module import generate
from nlc.passmanager import PassManager
from nlc.program.program import schedule
from nlc.runtime.compiled import CompiledSpec

OPS = ("linear_attention", "scalar_decay", "delta_rule", "gated_delta_rule", "separate_probe_key", "momentum_delta")
TINY = {"d": 16, "layers": 2}


def op(name: str, **options: object) -> CompiledSpec:
    return nlc.compile(f"ops/{name}", dims={"H": 2, "K": 8, "V": 8}, backend="eager", **options)  # type: ignore[arg-type]


def drawn(compiled: CompiledSpec, tokens: int, batch: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(0)
    inputs = {}
    for name in compiled.graph.inputs:
        flow = compiled.graph.flows[name]
        shape = (batch, tokens, *(axis.size for axis in flow.axes))
        inputs[name] = torch.randint(0, 256, shape) if flow.dtype == "index" else -0.3 * torch.rand(shape)
    return inputs


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'nlc':
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
namespace = {'__name__': 'alone'}
import types
module = types.ModuleType('alone')
sys.modules['alone'] = module
exec(compile(open(sys.argv[1]).read(), sys.argv[1], 'exec'), module.__dict__)
import torch
model = getattr(module, sys.argv[2])()
inputs, wanted = torch.load(sys.argv[3], weights_only=True)
for name, x in model.named_parameters():
    x.data.copy_(wanted['parameters'][name])
outputs, state = model(inputs)
for name, x in wanted['outputs'].items():
    assert torch.equal(outputs[name], x), name
assert not any(name.partition('.')[0] == 'nlc' for name in sys.modules)
print('alone')
"""


@pytest.mark.parametrize("name", ["ops/momentum_delta", "models/gated_delta_lm"])
def test_generated_module_runs_where_nlc_is_not(name: str, tmp_path: Path) -> None:
    compiled = nlc.compile(name, dims=TINY if name.startswith("models") else {"H": 2, "K": 8, "V": 8}, backend="eager")
    inputs = drawn(compiled, 20)
    outputs, _ = compiled(inputs)
    source, data = tmp_path / "generated.py", tmp_path / "data.pt"
    source.write_text(compiled.source, encoding="utf-8")
    parameters = {key: x.detach() for key, x in compiled.named_parameters()}
    torch.save((inputs, {"outputs": {k: x.detach() for k, x in outputs.items()}, "parameters": parameters}), data)
    base = next(cls.__name__ for cls in type(compiled).__mro__ if cls.__module__.startswith("nlc_generated"))

    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(source), base, str(data)], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert done.stdout.strip() == "alone", done.stderr


class Forward(torch.nn.Module):
    """`forward` with the inputs as a dict and a given state, for export."""

    def __init__(self, compiled: CompiledSpec) -> None:
        super().__init__()
        self.compiled = compiled

    def forward(self, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs, _ = self.compiled(inputs, state)
        return dict(outputs)


@pytest.mark.parametrize("name", ["ops/gated_delta_rule", "ops/momentum_delta", "ops/linear_attention", "models/gated_delta_lm"])
def test_graph_of_forward_does_not_grow_with_the_sequence(name: str) -> None:
    compiled = nlc.compile(name, dims=TINY if name.startswith("models") else {"H": 2, "K": 8, "V": 8}, backend="eager")
    sizes = []
    for tokens in (512, 4096):
        inputs = drawn(compiled, tokens, batch=1)
        state = {key: x.detach().clone() for key, x in compiled.initial_state(1, inputs).items()}
        sizes.append(len(torch.export.export(Forward(compiled), (inputs, state), strict=False).graph.nodes))

    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", OPS)
def test_forward_and_step_change_no_argument(name: str) -> None:
    compiled = op(name)
    inputs = drawn(compiled, 20)
    _, state = compiled(inputs)
    before = copy.deepcopy((inputs, state))

    compiled(inputs, state)
    compiled.step({key: x[:, 0] for key, x in inputs.items()}, state)

    for mine, saved in zip((inputs, state), before, strict=True):
        for key in saved:
            assert torch.equal(mine[key], saved[key])


@pytest.mark.parametrize("name", OPS)
def test_the_future_and_other_rows_do_not_matter(name: str) -> None:
    compiled = op(name)
    inputs = drawn(compiled, 40)
    whole, _ = compiled(inputs)
    later = {key: x.clone() for key, x in inputs.items()}
    for x in later.values():
        x[:, 23:] = -torch.rand_like(x[:, 23:])
        x[1] = -torch.rand_like(x[1])
    changed, _ = compiled(later)

    torch.testing.assert_close(changed["o"][0, :23], whole["o"][0, :23], rtol=0, atol=1e-6)


def test_module_is_a_module() -> None:
    model = nlc.compile("models/gated_delta_lm", dims=TINY, backend="eager")
    inputs = drawn(model, 12)
    outputs, _ = model(inputs)

    twin = copy.deepcopy(model)
    other = nlc.compile("models/gated_delta_lm", dims=TINY, backend="eager", seed=7)
    other.load_state_dict(model.state_dict())

    assert "h.1.q.linear.W" in model.state_dict()
    assert torch.equal(twin(inputs)[0]["logits"], outputs["logits"])
    assert torch.equal(other(inputs)[0]["logits"], outputs["logits"])
    torch.testing.assert_close(model.double()(inputs)[0]["logits"].float(), outputs["logits"], rtol=1e-4, atol=1e-4)


def test_many_layers_are_one_function() -> None:
    graph, _ = PassManager().run(nlc.build("models/gated_delta_lm", {"layers": 12}))
    few, _ = PassManager().run(nlc.build("models/gated_delta_lm", {"layers": 3}))
    source = generate(schedule(graph)).source

    assert source.count("\ndef h(") == 1
    assert "for i in range(12):" in source
    functions = (generate(schedule(g)).source.partition("class GatedDeltaLm")[0] for g in (graph, few))
    assert len({re.sub(r"h_\d+_y", "last", text) for text in functions}) == 1


def test_source_is_written_without_torch() -> None:
    script = (
        "import sys, nlc\n"
        "from nlc.passmanager import PassManager\n"
        "from nlc.program.program import schedule\n"
        "from nlc.backends.torch_module import generate\n"
        "generate(schedule(PassManager().run(nlc.build('models/gated_delta_lm'))[0]))\n"
        "print('torch' in sys.modules)\n"
    )

    assert subprocess.check_output([sys.executable, "-c", script], text=True, cwd=Path(__file__).parents[2]).strip() == "False"
