"""Which graphs, and which learners, are the same."""

import copy
import json
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import nlc
from nlc.diagnostics import SpecError
from nlc.graph.identity import canonical_signature, equivalents, graph_hash, memories, prepared
from nlc.graph.ir import LevelGraph
from nlc.language import loads
from nlc.language.library import MAPS, Library
from nlc.passes.expand_templates import expand
from nlc.passmanager import PassManager

ROOT = Path(__file__).parents[2]
Build = Callable[..., LevelGraph]


def _signature(graph: LevelGraph) -> str:
    graph = prepared(graph)
    ((_, learner),) = memories(graph).items()
    return canonical_signature(graph, learner)


# -- hash ---------------------------------------------------------------------------------------------------------------


def test_comments_docs_places_and_order_of_keys_are_no_meaning(tmp_path: Path, built: Build) -> None:
    data = yaml.safe_load(Path("specs/ops/gated_delta_rule.yaml").read_text(encoding="utf-8"))
    data["doc"] = "other words"
    other = tmp_path / "elsewhere.yaml"
    other.write_text("# a comment\n\n" + yaml.safe_dump(dict(reversed(data.items()))), encoding="utf-8")

    assert graph_hash(nlc.build(other)) == graph_hash(built("ops/gated_delta_rule"))


def test_name_of_an_inner_flow_is_no_meaning(memory: Build) -> None:
    first = memory("key: kk, value: v", more="flows: {kk: l2norm(k)}")
    second = memory("key: other, value: v", more="flows: {other: l2norm(k)}")

    assert graph_hash(first) == graph_hash(second)


def test_default_written_out_is_the_same(memory: Build) -> None:
    assert graph_hash(memory("key: k, value: v, at: start, rate: 1")) != graph_hash(memory("key: k, value: v, at: running"))
    assert graph_hash(memory("key: k, value: v, at: start")) == graph_hash(memory("key: k, value: v"))


def test_names_of_states_are_interface(memory: Build) -> None:
    assert graph_hash(memory("key: k, value: v", name="A")) != graph_hash(memory("key: k, value: v", name="B"))


def test_passes_change_the_hash_where_they_change_the_graph(built: Build) -> None:
    graph = built("ops/momentum_delta")
    stages = PassManager().run(graph)[1]
    hashes = [graph_hash(graph), *(graph_hash(stage.graph) for stage in stages)]

    assert [a != b for a, b in pairwise(hashes)] == [stage.changed for stage in stages]


DEEP = "levels: {m: {every: 1 token, learners: {S: {store: STORE, init: learned, learn: {key: k, value: v}}}}}\noutputs: {o: S(k)}"
HOSTS = {
    "stores": {
        "matrix": "levels: {m: {every: 1 token, learners: {S: {store: {matrix: [K, V]}, learn: {key: k, value: v}}}}}\noutputs: {o: S(k)}",
        "vector": "levels: {m: {every: 1 token, learners: {S: {store: {vector: [V]}, learn: {value: v}}}}}\noutputs: {o: S()}",
        "scalar": "levels: {m: {every: 1 token, learners: {S: {store: {scalar: []}, learn: {value: sum(v)}}}}}\noutputs: {o: S()}",
        "mlp": DEEP.replace("STORE", "{mlp: [K, 5, V]}"),
        "mlp3": DEEP.replace("STORE", "{mlp3: [K, 5, 6, V]}"),
        "gated_mlp": DEEP.replace("STORE", "{gated_mlp: [K, 5, V]}"),
        "mlp4": DEEP.replace("STORE", "{mlp4: [K, 5, 6, 7, V]}"),
    },
    "functions": "outputs: {o: NAME(v)}",
    "objectives": "levels: {m: {every: 1 token, learners: {S: {store: {matrix: [K, V]}, "
    "learn: {key: k, value: v, minimize: NAME}}}}}\noutputs: {o: S(k)}",
    "optimizers": "levels: {m: {every: 1 step, learners: {W: {owns: rest, scope: shared, read: start, "
    "learn: {minimize: loss, fold: {row: mean, token: mean}, rule: {NAME: {}}}}}}}\nflows: {y: 'linear(k, [V])'}\n"
    "loss: sum((y - v)^2)\noutputs: {o: y}",
}
"""Specs through which the parts of specs are seen."""

WORDS = [
    "start",
    "running",
    "decayed",
    "before",
    "after",
    "sum",
    "mean",
    "zeros",
    "ones",
    "learned",
    "shared",
    "sequence",
    "dot",
    "square",
    "l2",
]
SILENT = {"nlc", "doc", "name", "presets"}


def _leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        yield path
        return
    for key, value in items:
        yield from _leaves(value, (*path, key))


def _specs() -> list[str]:
    files = (path for path in (ROOT / "specs").glob("*/*.yaml") if path.parent.name != MAPS)
    return sorted(str(path.relative_to(ROOT / "specs").with_suffix("")) for path in files)


def _built(spec: str, library: Path, scratch: Path) -> LevelGraph:
    role, _, name = spec.partition("/")
    if name == "clip_norm":  # has a meaning in rules only
        rule = {"nlc": 1, "name": "host", "inputs": {"g": "gradient"}, "uses": {"f": spec}, "outputs": {"step": "f(g)"}}
        scratch.write_text(json.dumps(rule), encoding="utf-8")
        return expand(nlc.build(scratch, library=Library(library)))
    if role not in HOSTS:
        return nlc.build(library / f"{spec}.yaml", library=Library(library))
    host: Any = HOSTS[role]
    text = host[name] if isinstance(host, dict) else host.replace("NAME", name)
    scratch.write_text(f"nlc: 1\nname: host\ndims: {{K: 4, V: 3}}\ninputs: {{k: [K], v: [V]}}\n{text}\n", encoding="utf-8")
    return nlc.build(scratch, library=Library(library))


def _candidates(value: Any, data: Any) -> Iterator[Any]:
    """Other values for a place: other numbers, other words of the language, other things the same file says, changed expressions."""
    if isinstance(value, int | float):
        yield from (value + 1, value * 2, value / 2)
        return
    if " token" in value or " step" in value or " update" in value:
        yield from ("3 tokens", "16 tokens", "1 token")
    texts = [text for text in (str(_at(data, path)) for path in _leaves(data)) if not text.isdigit()]
    names = [str(path[-1]) for path in _leaves(data) if len(path) > 1]
    yield from dict.fromkeys(
        [f"({value}) * 2", f"{value} + 1", *WORDS, *names, *texts, "optimizers/sgd", "blocks/other"]
    )  # the likely first


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def _set(node: Any, path: tuple[Any, ...], value: Any) -> None:
    _at(node, path[:-1])[path[-1]] = value


def _others(spec: str, path: tuple[Any, ...], tmp_path: Path) -> Generator[tuple[Any, str], None, None]:
    """Legal other values for one key of a spec, and the hash of the graph with each."""
    library = tmp_path / "library"
    file = library / f"{spec}.yaml"
    text = file.read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    value = _at(data, path)
    try:
        for candidate in _candidates(value, copy.deepcopy(data)):
            same_file = path[0] == "uses" and str(value).endswith(f"/{candidate}")  # a spec beside this one is found by its name alone
            if candidate != value and not same_file:
                _set(data, path, candidate)
                file.write_text(json.dumps(data), encoding="utf-8")  # JSON is YAML, and quickly written
                try:
                    yield candidate, graph_hash(_built(spec, library, tmp_path / "host.yaml"))
                except SpecError:
                    continue
    finally:
        file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("spec", _specs())
def test_every_key_of_the_library_counts(spec: str, tmp_path: Path) -> None:
    library = tmp_path / "library"
    shutil.copytree(ROOT / "specs", library, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    original = graph_hash(_built(spec, library, tmp_path / "host.yaml"))
    tried = 0
    for path in _leaves(yaml.safe_load((library / f"{spec}.yaml").read_text(encoding="utf-8"))):
        is_axis = len(path) > 1 and isinstance(path[-1], int)  # one axis cannot be renamed alone
        if path[0] in SILENT or is_axis or (spec.startswith("stores/") and path[0] == "dims"):  # a store's arguments replace its dims
            continue
        with closing(_others(spec, path, tmp_path)) as others:
            found = dict(islice(others, 1))
        tried += bool(found)

        assert original not in found.values(), f"{spec}: {path} may be {found} without changing the graph"
    assert tried or spec.startswith("stores/")


# -- learners -----------------------------------------------------------------------------------------------------------

SAME = {
    "dot on the error": ("key: k, value: v - self(k), minimize: dot, rate: beta", "ops/delta_rule"),
    "rate in the value": ("key: k, value: beta * (v - self(k)), minimize: dot", "ops/delta_rule"),
    "objective written out": ("key: k, value: v, minimize: '0.5 * sum((value - pred)^2)', rate: beta", "ops/delta_rule"),
    "square, half the rate": ("key: k, value: v, minimize: square, rate: 0.5 * beta", "ops/delta_rule"),
    "another gate": ("key: k, value: v, rate: sigmoid(beta), keep: sigmoid(g), at: decayed", "ops/gated_delta_rule"),
    "context from other flows": ("key: l2norm(k + q), value: v * 2, rate: beta, keep: exp(g - 1), at: decayed", "ops/gated_delta_rule"),
    "probe": ("key: k, value: v - self(p), minimize: dot, rate: beta, keep: g, at: decayed", "ops/separate_probe_key"),
    "momentum": ("key: k, value: v, keep: g, rule: {momentum: {rate: beta, decay: decay}}", "ops/momentum_delta"),
    "gate without exp": ("key: k, value: v, minimize: dot, keep: g", "ops/scalar_decay"),
    "plain": ("key: k, value: v, minimize: dot", "ops/linear_attention"),
    "a gate for each channel": ("key: k, value: v, rate: beta, keep: sigmoid(p), at: decayed", "ops/kda"),
    "that without an error": ("key: k, value: v, minimize: dot, keep: sigmoid(p)", "ops/gla"),
    "a momentum that forgets at once": ("key: k, value: v, rule: {momentum: {rate: beta, decay: 0}}", "ops/delta_rule"),
    "the implicit step written out": ('key: k, value: v, rate: "beta / (1 + beta * dot(k, k))"', "ops/longhorn"),
}


@pytest.mark.parametrize(("learn", "name"), SAME.values(), ids=list(SAME))
def test_other_words_for_the_same_learner(learn: str, name: str, memory: Build) -> None:
    assert equivalents(memory(learn, name="Other"), Library()) == {"Other": [name]}


DIFFERENT = {
    "gradient before the decay": "key: k, value: v, rate: beta, keep: exp(g), at: running",
    "tied gates": "key: k, value: v, rate: 1 - g, keep: g, at: decayed",
    "a rate for linear attention": "key: k, value: v, minimize: dot, rate: beta",
    "twice the step": "key: k, value: v, minimize: square",
    "a gate that is a number": "key: k, value: v, minimize: dot, keep: 0.5",
    "a rate tied to the key": 'key: k, value: v - self(p), minimize: dot, rate: "beta / (1 + dot(k, k))", keep: g, at: decayed',
    "gates and rates for each channel": "key: k, value: v, rate: sigmoid(p), keep: sigmoid(q), at: decayed",
}


@pytest.mark.parametrize("learn", DIFFERENT.values(), ids=list(DIFFERENT))
def test_other_learners_are_not_the_same(learn: str, memory: Build) -> None:
    assert equivalents(memory(learn), Library()) == {"S": []}


@pytest.mark.parametrize("name", ["gla", "kda", "rwkv7", "gated_delta_product", "longhorn", "retnet", "scalar_decay", "delta_rule"])
def test_an_op_is_the_same_as_itself_only(name: str, built: Build) -> None:
    """A gate per channel, steps one after the other, a rate tied to the key, a gate that no token changes: each is a learner of its own."""
    assert equivalents(built(f"ops/{name}"), Library()) == {"S": [f"ops/{name}"]}


def _changed(name: str, *changes: tuple[str, str]) -> LevelGraph:
    """An op of the library with other words in its text."""
    text = (ROOT / "specs" / "ops" / f"{name}.yaml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return nlc.build(loads(text))


def test_one_sample_a_token_is_no_sample_axis() -> None:
    assert equivalents(_changed("gated_delta_product", ("R: 2", "R: 1")), Library()) == {"S": ["ops/gated_delta_rule"]}


def test_when_a_gate_acts_counts_where_a_token_holds_samples() -> None:
    once, each = _changed("gated_delta_product"), _changed("gated_delta_product", ("g: [H]", "g: [R, H]"))
    without = ("rate: beta, keep: exp(g), at: decayed", "rate: beta, at: running")

    assert _signature(once) != _signature(each)
    assert equivalents(_changed("gated_delta_product", without), Library()) == {"S": []}


def test_writes_of_a_token_have_no_order() -> None:
    erase, write = "key: a * kap, value: -self(kap), minimize: dot", "key: kt, value: v, minimize: dot"
    swapped = _changed("rwkv7", (erase, "FIRST"), (write, erase), ("FIRST", write))

    assert swapped.learners["S"].writes[0].key == "kt"
    assert equivalents(swapped, Library()) == {"S": ["ops/rwkv7"]}


def test_keep_of_a_rule_is_the_keep_of_the_learner(tmp_path: Path, memory: Build) -> None:
    rule = "nlc: 1\nname: fading\nparams: {rate: 1, gate: 1}\ninputs: {g: gradient}\noutputs: {step: -rate * g, keep: gate}\n"
    (tmp_path / "fading.yaml").write_text(rule, encoding="utf-8")
    graph = memory("key: k, value: v, minimize: dot, rule: {fading: {gate: exp(g)}}", more="uses: {fading: fading}")

    assert equivalents(graph, Library()) == {"S": ["ops/scalar_decay"]}


def test_memory_in_a_model_is_found_by_its_meaning(built: Build) -> None:
    graph = built("models/gated_delta_lm")

    assert equivalents(graph, Library()) == {f"h.{i}.S": ["ops/gated_delta_rule"] for i in range(5)}


def test_sign_and_order_of_a_rule_are_notation(tmp_path: Path, memory: Build) -> None:
    """A buffer of gradients that is subtracted is the buffer of negative gradients that is added."""
    rule = (
        "nlc: 1\nname: heavy\nparams: {rate: 0.1, decay: 0.9}\ninputs: {g: gradient}\n"
        "levels: {b: {every: 1 update, learners: {m: {store: {like: g}, learn: {value: g, minimize: dot, rate: rate, keep: decay}}}}}\n"
        "outputs: {step: -m()}\n"
    )
    (tmp_path / "heavy.yaml").write_text(rule, encoding="utf-8")
    graph = memory("key: k, value: v, keep: g, rule: {heavy: {rate: beta, decay: decay}}", more="uses: {heavy: heavy}")

    assert equivalents(graph, Library()) == {"S": ["ops/momentum_delta"]}


def test_clock_and_read_count(memory: Build) -> None:
    text = _signature(memory("key: k, value: v"))

    assert _signature(memory("key: k, value: v", per="[H], read: before")) != text
    assert _signature(memory("key: k, value: v", per="[H], read: start")) == _signature(memory("key: k, value: v", per="[H], read: before"))
