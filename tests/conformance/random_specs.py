"""Random legal specs, as YAML texts: every option of the language that this version compiles, every legal pair of options.

`plan` draws the options of each case, `case_of` writes its spec. Everything follows from a number: the same number gives the
same case on every machine.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from tests.conformance.options import Options, plan
from tests.conformance.values import HOSTILE, Source
from tests.conformance.writing import Writer


@dataclass(frozen=True)
class Case:
    """One spec. `files` (path without suffix -> text) lie in its search path."""

    number: int
    options: Options
    text: str
    files: dict[str, str]
    inputs: dict[str, str]
    batch: int
    tokens: int
    cuts: tuple[int, ...]
    position: int
    without: tuple[str, ...]

    def show(self) -> str:
        files = "".join(f"\n# file {path}.yaml\n{text}" for path, text in self.files.items())
        head = f"# case {self.number}: batch {self.batch}, tokens {self.tokens}, calls end at {self.cuts}, position {self.position}, "
        return f"{head}without {self.without}\n# {self.options}\n{self.text}{files}"


def case_of(number: int, options: Options | None = None) -> Case:
    """The case of a number: the options are those of the plan unless given."""
    o = dict(options or plan()[number])
    rng = random.Random(f"case {number}")
    sizes = {role: rng.choice((1, 2, 2, 3, 4)) for role in ("A", "H", "K", "V", "D", "R", "hidden", "Z")}
    if o["key from"] == "rotated":  # pairs of channels are turned
        sizes |= {role: sizes[role] + sizes[role] % 2 for role in ("K", "V")}
    writer = Writer(o, rng, HOSTILE, sizes)
    outputs, y = _body(writer, sizes)
    text = _text(writer, sizes, "case", outputs, None if o["training"] == "none" else y)
    tokens = rng.choice((1 if o["training"] == "none" else 2, 3, 4, 5, 5, 6, 7, 8, 9, 12, 17))
    cuts = sorted(rng.sample(range(1, tokens), min(tokens - 1, rng.choice((0, 1, 1, 2)))))
    if cuts and rng.random() < 0.4 and cuts[0] + 1 < tokens and cuts[0] + 1 not in cuts:
        cuts = sorted([*cuts, cuts[0] + 1])
    optional = ("fold-constants", "share-flows", "drop-dead", "fuse-projections", "bucket-frequencies")
    without = tuple(name for name in optional if rng.random() < 0.5)
    without += ("fuse-learners",) if number % 2 else ()
    kinds = {name: source.kind for name, source in writer.inputs.items()}
    position = rng.choice((0, 1, 5)) if o["state"] == "given" else 0
    return Case(number, o, text, writer.files, kinds, rng.choice((1, 2)), tokens, (*cuts, tokens), position, without)


def _body(writer: Writer, sizes: dict[str, int]) -> tuple[dict[str, str], str]:
    """The outputs of the spec, and the expression [D] that a loss is made of."""
    o, rng = writer.o, writer.rng
    D = writer.dim("D")
    if o["block"] == "none":
        recalls = writer.learners()
        outputs = {f"out{i}": text for i, text in enumerate(recalls)}
        if o["store"] != "vector" and o["learners"] != "feeds key" and rng.random() < 0.4:  # a query that only the loss asks
            recalls.append(writer.recall(writer.taken["S"], writer.key("input")))
        return outputs, " + ".join(f"linear({text}, {D})" for text in recalls)
    inner = _block(writer.o, rng, sizes, writer.files)
    writer.files["blocks/inner"] = inner
    use = writer.name("use")
    if o["block"] == "in a block":
        writer.files["blocks/outer"] = _nesting(rng, sizes)
        writer.uses[use] = "blocks/outer"
    else:
        writer.uses[use] = "blocks/inner"
    x = writer.wide()
    y = f"repeat({use}, {rng.choice((1, 2, 3))}, {x})" if o["block"] == "repeated" else f"{use}({x})"
    y = writer.flow(y)
    if o["block"] == "used" and rng.random() < 0.4:
        y = writer.flow(f"{use}({y} * 0.5)", always=True)
    return {"out": rng.choice((y, f"{y} + {x}", f"rmsnorm({y})"))}, y


def _block(o: Options, rng: random.Random, sizes: dict[str, int], files: dict[str, str]) -> str:
    writer = Writer(o, rng, HOSTILE, sizes, inside=True, files=files)
    x, D = writer.wide(), writer.dim("D")
    recalls = writer.learners()
    y = f"{x} + " + " + ".join(f"linear({text}, {D})" for text in recalls)
    writer.inputs = {x: Source((D,))}
    return _text(writer, sizes, "inner", {writer.name("y"): y}, None)


def _nesting(rng: random.Random, sizes: dict[str, int]) -> str:
    y = rng.choice(("repeat(inner, 2, u)", "inner(u)", "inner(inner(u) + u)", "0.5 * inner(u) + x"))
    head = f"nlc: 1\nname: outer\ndims: {{D: {sizes['D']}}}\ninputs: {{x: [D]}}\nuses: {{inner: blocks/inner}}\n"
    u = "rmsnorm(x)" if sizes["D"] > 1 else "tanh(x)"  # the norm of one number is its sign; its gradient is noise
    return f"{head}flows: {{u: {u}}}\noutputs: {{y: {json.dumps(y)}}}\n"


def _text(writer: Writer, sizes: dict[str, int], name: str, outputs: dict[str, str], y: str | None) -> str:
    """The YAML of a spec; with `y`, the expression [D] that its loss is made of."""
    o, rng = writer.o, writer.rng
    lines = ["nlc: 1", f"name: {name}"]
    loss = None
    if y is not None:
        loss = _loss(writer, y)
        rule = rng.choice(
            (f"{{{o['training']}: {{{'rate' if o['training'] == 'momentum' else 'lr'}: 0.001}}}}", f"{{{o['training']}: {{}}}}")
        )
        fold = f"{{row: {rng.choice(('mean', 'sum'))}, token: {rng.choice(('mean', 'sum'))}}}"
        owner = writer.name("weights")
        learn = f"{{minimize: loss, fold: {fold}, rule: {rule}}}"
        writer.levels["1 step"] = [f"{owner}: {{owns: rest, scope: shared, read: start, learn: {learn}}}"]
    vocabulary = writer.taken.get("E dim")
    dims = {writer.dim(role): size for role, size in sizes.items() if f"{role} dim" in writer.taken}
    lines.append(f"dims: {{{', '.join(f'{k}: {v}' for k, v in dims.items())}{f', {vocabulary}: 5' if vocabulary else ''}}}")
    shown = [f"{k}: {{index: {s.axes[0]}}}" if s.kind == "index" else f"{k}: [{', '.join(s.axes)}]" for k, s in writer.inputs.items()]
    lines.append(f"inputs: {{{', '.join(shown)}}}")
    if writer.uses:
        lines.append(f"uses: {{{', '.join(f'{k}: {v}' for k, v in writer.uses.items())}}}")
    if writer.flows:
        lines += ["flows:", *(f"  {k}: {json.dumps(v)}" for k, v in writer.flows.items())]
    if loss is not None:
        lines.append(f"loss: {json.dumps(loss)}")
    if writer.levels:
        lines.append("levels:")
    for i, (every, learners) in enumerate(writer.levels.items()):
        lines += [f"  level{i}:", *([f"    every: {every}"] if every else []), "    learners:", *(f"      {text}" for text in learners)]
    lines += ["outputs:", *(f"  {k}: {json.dumps(v)}" for k, v in outputs.items())]
    return "\n".join(lines) + "\n"


def _loss(writer: Writer, y: str) -> str:
    if writer.rng.random() < 0.5:
        target = writer.name("target")
        writer.inputs[target] = Source((writer.dim("D"),))
        late = writer.rng.choice(("", " + 0.01 * position", " * cos(position)", " * 2"))
        return f"sum(({y} - {target})^2){late}"
    tokens, E = writer.name("tokens"), writer.dim("E")
    writer.inputs[tokens] = Source((E,), "index")
    return f"cross_entropy(unembed({y}, {E}), next({tokens}))"
