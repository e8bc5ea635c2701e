"""Files and texts to typed specs: what each part becomes."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from nlc.diagnostics import DataError, SpecError
from nlc.language import load, loads
from nlc.language.expression import Call, Expr, Lambda, ListOf, Name, Number, to_text
from nlc.language.library import MAPS
from nlc.language.spec import Learner, Spec

LIBRARY = Path(__file__).parents[2] / "specs"
SPECS = sorted(path for path in LIBRARY.glob("*/*.yaml") if path.parent.name != MAPS)


def spec(body: str) -> Spec:
    return loads(f"nlc: 1\nname: test\n{body}")


def learner(body: str, templates: str = "{}") -> Learner:
    return spec(f"templates: {templates}\nlevels: {{a: {{learners: {{S: {body}}}}}}}\n").learners[0]


def codes(body: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        spec(body)
    return [problem.code for problem in caught.value.diagnostics]


def text(expr: Expr | Mapping[str, object] | None) -> str:
    assert expr is not None
    assert not isinstance(expr, Mapping)
    return to_text(expr)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_of_the_library_loads(path: Path) -> None:
    loaded = load(path)

    assert loaded.name == path.stem
    assert loaded.outputs
    assert set(loaded.spans) <= {*Spec.__dataclass_fields__, "nlc", "templates"}


def test_a_file_becomes_a_spec_with_places() -> None:
    path = LIBRARY / "ops" / "gated_delta_rule.yaml"

    loaded = load(path)

    (level,) = loaded.levels
    (memory,) = level.learners
    (write,) = memory.learn
    assert [(d.name, text(d.value)) for d in loaded.dims] == [("H", "4"), ("K", "64"), ("V", "64")]
    assert [(i.name, i.kind, i.axes) for i in loaded.inputs][-1] == ("g", "tensor", ("H",))
    assert level.every is not None and (text(level.every.count), level.every.clock) == ("1", "token")
    assert memory.store is not None and memory.store.use is not None and text(memory.store.use) == "matrix(K, V)"
    assert [text(axis) for axis in memory.per] == ["H"]
    assert not isinstance(write.keep, dict)
    assert [text(e) for e in (write.key, write.value, write.rate, write.keep, write.at)] == ["k", "v", "beta", "exp(g)", "decayed"]
    assert (write.minimize, write.fold, write.rule, memory.read, memory.scope, loaded.loss) == (None,) * 6
    assert str(write.spans["keep"]).endswith("gated_delta_rule.yaml:11:84")
    assert loaded.sources == {loaded.path: path.read_text()}


def test_used_files_are_loaded_with_their_sources() -> None:
    loaded = load(LIBRARY / "models" / "gated_delta_lm.yaml")

    assert [(use.name, use.target, use.spec.name) for use in loaded.uses] == [
        ("block", "blocks/gated_delta", "gated_delta"),
        ("outer", "optimizers/adamw_clipped", "adamw_clipped"),
    ]
    assert {Path(file).stem for file in loaded.sources} == {"gated_delta_lm", "gated_delta", "adamw_clipped"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{momentum: {decay: a, rate: 0.5 * b}}", "momentum(decay=a, rate=0.5 * b)"),
        ("{matrix: [K, 2 * V]}", "matrix(K, 2 * V)"),
        ("{like: g}", "like(g)"),
        ("{gd: {}}", "gd()"),
        ("{gd: []}", "gd()"),
        ("{f: [[H, K], 1]}", "f([H, K], 1)"),
        ("{outer: {rule: {gd: {rate: 1}}, axes: [H]}}", "outer(rule=gd(rate=1), axes=[H])"),
        ("momentum(a, b=2)", "momentum(a, b=2)"),
        ('"f(a, b)"', "f(a, b)"),
        ("[H, K]", "[H, K]"),
        ("-1", "-1"),
        ("1e-3", "0.001"),
        ("0x10", "16"),
        ("'12'", "12"),
        ("no", "no"),
    ],
)
def test_values_become_expressions(written: str, expected: str) -> None:
    (flow,) = spec(f"flows: {{y: {written}}}" if "(" not in written else f"flows:\n  y: {written}\n").flows

    assert to_text(flow.value) == expected


def test_a_call_in_yaml_spans_name_and_arguments() -> None:
    (flow,) = spec("flows:\n  y: {f: {a: 1}}\n").flows

    assert isinstance(flow.value, Call)
    assert (flow.value.span.line, flow.value.span.column, flow.value.span.end_column) == (3, 6, 15)


@pytest.mark.parametrize(
    ("written", "count", "clock"),
    [
        ("1 token", "1", "token"),
        ("16 tokens", "16", "token"),
        ("1 step", "1", "step"),
        ("1 sequence", "1", "sequence"),
        ("period updates", "period", "update"),
        ("2 * c tokens", "2 * c", "token"),
        ("max(a, 2) steps", "max(a, 2)", "step"),
        ("'  8   tokens '", "8", "token"),
    ],
)
def test_periods_have_a_count_and_a_clock(written: str, count: str, clock: str) -> None:
    every = spec(f"levels:\n  a:\n    every: {written}\n    learners: {{}}\n").levels[0].every

    assert every is not None
    assert (to_text(every.count), every.clock) == (count, clock)


@pytest.mark.parametrize(
    ("written", "kind", "axes", "size"),
    [
        ("[H, K]", "tensor", ("H", "K"), None),
        ("[]", "tensor", (), None),
        ("{index: vocab}", "index", (), "vocab"),
        ("{index: 1024}", "index", (), "1024"),
        ("{gradient: [O, I]}", "gradient", ("O", "I"), None),
        *((word, word, None, None) for word in ("gradient", "weights", "input", "error", "pred", "value", "key")),
    ],
)
def test_inputs_have_a_kind(written: str, kind: str, axes: tuple[str, ...] | None, size: str | None) -> None:
    (found,) = spec(f"inputs: {{x: {written}}}").inputs

    assert (found.kind, found.axes, found.size and to_text(found.size)) == (kind, axes, size)


def test_params_are_numbers_or_axes_of_a_tensor() -> None:
    params = spec("params: {rate: -0.5, W: [I, 2 * O]}").params

    assert isinstance(params[0].value, Number) and params[0].value.value == -0.5
    assert isinstance(params[1].value, ListOf) and to_text(params[1].value) == "[I, 2 * O]"


def test_a_store_may_be_written_out() -> None:
    store = learner("{store: {params: {W: [d, h], b: [h]}, call: z -> z @ W + b}}").store

    assert store is not None and store.use is None
    assert [(name, [to_text(a) for a in axes]) for name, axes, _ in store.tensors] == [("W", ["d", "h"]), ("b", ["h"])]
    assert isinstance(store.call, Lambda) and to_text(store.call) == "z -> z @ W + b"


def test_learn_may_be_a_list() -> None:
    writes = learner("{store: {matrix: [K, V]}, learn: [{key: a, value: b, keep: c}, {key: d}]}").learn

    assert [text(w.key) for w in writes] == ["a", "d"]
    assert [w.span.column for w in writes] == sorted(w.span.column for w in writes)


def test_fold_is_a_word_or_a_word_for_each_axis() -> None:
    one = learner("{owns: rest, learn: {fold: mean}}").learn[0].fold
    several = learner("{owns: rest, learn: {fold: {row: mean, token: each}}}").learn[0].fold

    assert isinstance(one, Name) and one.name == "mean"
    assert several == {"row": "mean", "token": "each"}


def test_at_may_be_a_function_of_the_weights() -> None:
    assert text(learner('{owns: rest, learn: {at: "w -> w - m()"}}').learn[0].at) == "w -> w - m()"


def test_templates_merge_deeply_and_keep_their_places() -> None:
    box = "{box: {store: {matrix: [K, V]}, init: learned, learn: {key: k, value: v, fold: {row: mean, token: sum}}}}"

    merged = learner("{use: box, init: zeros, learn: {value: u, fold: {token: last}}}", box)

    (write,) = merged.learn
    assert (text(write.key), text(write.value), write.fold) == ("k", "u", {"row": "mean", "token": "last"})
    assert text(merged.init) == "zeros"
    assert [merged.spans[key].line for key in ("store", "init", "learn")] == [2, 3, 2]
    assert [write.spans[key].line for key in ("key", "value", "fold")] == [2, 3, 2]
    assert "use" not in merged.spans


def test_templates_use_templates() -> None:
    merged = learner("{use: b}", "{b: {use: a, per: [H]}, a: {store: {vector: [V]}, per: [G, H]}}")

    assert [to_text(axis) for axis in merged.per] == ["H"]
    assert merged.store is not None and text(merged.store.use) == "vector(V)"


@pytest.mark.parametrize(
    ("below", "above", "result"),
    [
        ("{adamw: {lr: 1, decay: 2}}", "{adamw: {lr: 3}}", "adamw(lr=3, decay=2)"),
        ("{adamw: {lr: 1}}", "{sgd: {lr: 3}}", "sgd(lr=3)"),
        ("{adamw: {lr: 1}}", "{adamw: [3]}", "adamw(3)"),
        ("adamw(lr=1)", "{adamw: {decay: 3}}", "adamw(decay=3)"),
    ],
)
def test_calls_merge_only_with_calls_of_the_same_name(below: str, above: str, result: str) -> None:
    merged = learner(f"{{use: t, learn: {{rule: {above}}}}}", f"{{t: {{owns: rest, learn: {{rule: {below}}}}}}}")

    assert text(merged.learn[0].rule) == result


@pytest.mark.parametrize(
    ("below", "above", "result"),
    [
        ("{matrix: [K, V]}", "{like: N}", "like(N)"),
        ("{params: {W: [K]}, call: z -> W}", "{like: N}", "like(N)"),
        ("{matrix: [K, V]}", "{matrix: [V, K]}", "matrix(V, K)"),
    ],
)
def test_a_store_replaces_another_store(below: str, above: str, result: str) -> None:
    store = learner(f"{{use: t, store: {above}}}", f"{{t: {{store: {below}}}}}").store

    assert store is not None and text(store.use) == result


def test_a_store_may_be_completed_by_the_learner() -> None:
    store = learner("{use: t, store: {call: z -> z @ W}}", "{t: {store: {params: {W: [K, V]}}}}").store

    assert store is not None and len(store.tensors) == 1 and text(store.call) == "z -> z @ W"


@pytest.mark.parametrize("order", [1, -1])
def test_chains_of_templates_are_limited_whatever_their_order(order: int) -> None:
    parts = [f"t{i}: {{use: t{i + 1}}}" for i in range(3000)]

    assert codes(f"templates: {{{', '.join([*parts, 't3000: {owns: rest}'][::order])}}}\n") == ["NLC122"]


def test_one_mistake_in_a_template_gives_one_message() -> None:
    body = "templates: {t: {owns: rest, learn: {rate: 1 +}}}\nlevels: {a: {learners: {A: {use: t}, B: {use: t}}}}\n"

    assert codes(body) == ["NLC150"]


def test_mistakes_in_an_unused_template_are_found() -> None:
    assert codes("templates: {t: {owns: rest, learn: {rate: 1 +}}}\n") == ["NLC150"]


def test_all_mistakes_are_reported_in_order() -> None:
    body = "dims: {H: 0}\nflows: {y: a +, self: b}\nlevels: {a: {evry: 1 token, learners: {}}, b: {every: 0 steps, learners: {}}}\nzzz: 1\n"

    assert codes(body) == ["NLC112", "NLC150", "NLC108", "NLC101", "NLC110", "NLC101"]


def test_a_wrong_version_is_reported_alone() -> None:
    with pytest.raises(SpecError) as caught:
        loads("nlc: 3\nfoo: 1\nflows: {y: 1 +}\n")

    assert [problem.code for problem in caught.value.diagnostics] == ["NLC105"]


def test_brackets_cut_by_yaml_are_reported_alone() -> None:
    assert codes("foo: 1\nflows: {y: f(a, b), z: 1 +}\n") == ["NLC018"]


@pytest.mark.parametrize("body", ["doc: see f(a and b)", "doc: a :-) b", "doc: '('", "doc: a) b) c (d"])
def test_brackets_in_prose_are_no_mistake(body: str) -> None:
    assert spec(body).doc


def test_names_in_outputs_are_their_own() -> None:
    assert [o.name for o in spec("inputs: {y: [K]}\noutputs: {y: y, step: y, keep: y}\n").outputs] == ["y", "step", "keep"]


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path / "none.yaml")

    assert ([p.code for p in caught.value.diagnostics], caught.value.exit_code) == (["NLC001"], 4)


@pytest.mark.parametrize(("name", "code"), [("", "NLC002"), ("x" * 300, "NLC003"), ("a\0b", "NLC001"), ("/dev/null", "NLC002")])
def test_what_is_no_file_is_a_data_error(tmp_path: Path, name: str, code: str) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path / name)

    assert [p.code for p in caught.value.diagnostics] == [code]


@pytest.mark.parametrize(
    ("data", "code", "place"),
    [
        (b"nlc: 1\nname: \xff\n", "NLC005", "2:7"),
        ("nlc: 1\nname: é".encode("utf-16"), "NLC005", "1:1"),
        (b"#" * 5_000_000, "NLC004", "1:1"),
        (b"nlc: 1\nname: a\0\n", "NLC006", "2:8"),
        (b"", "NLC007", "1:1"),
    ],
)
def test_wrong_bytes_are_spec_errors(tmp_path: Path, data: bytes, code: str, place: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(data)

    with pytest.raises(SpecError) as caught:
        load(path)

    (problem,) = caught.value.diagnostics
    assert (problem.code, caught.value.exit_code) == (code, 1)
    assert str(problem.span).endswith(f"wrong.yaml:{place}")


def test_paths_below_the_current_folder_are_shown_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text("nlc: 1\nname: a\n")
    monkeypatch.chdir(tmp_path)

    assert load(tmp_path / "sub" / "a.yaml").path == "sub/a.yaml"


def test_windows_line_ends_keep_places() -> None:
    with pytest.raises(SpecError) as caught:
        loads("nlc: 1\r\nname: a\r\nflows:\r\n  y: 1 +\r\n")

    assert str(caught.value.diagnostics[0].span) == "<string>:4:8"
