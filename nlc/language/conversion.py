"""The tree of a file to a typed `Spec`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nlc.diagnostics import Diagnostic, Span, SpecError
from nlc.language.expression import Call, Expr, Lambda, ListOf, Name, Number
from nlc.language.form import MissingKey, UnknownKey, UnknownWord, WrongKind, WrongVersion, check_form, unknown_word
from nlc.language.schema import BACKPROP, DTYPES, FOLDS, INPUT_WORDS, STATES
from nlc.language.spec import Dim, Flow, Input, Learner, Level, Param, Period, Preset, Reset, Sequences, Spec, Store, Use, Write
from nlc.language.templates import Templates, is_inline
from nlc.language.values import Problems, axes, axis_names, call, check_name, expression, function, period, size
from nlc.language.wording import closest, did_you_mean, listed, orderly
from nlc.language.yaml_reader import read
from nlc.language.yaml_tree import Broken, Entry, Mapping, Node, Scalar, Sequence, describe


class DefinedTwice(Diagnostic):
    """One name for two things.

    Why: an expression could not tell them apart.
    Wrong:  {inputs: {k: [K]}, flows: {k: f(x)}}
    Right:  {inputs: {k: [K]}, flows: {key_flow: f(k)}}
    """

    code = "NLC109"


class RateAndRule(Diagnostic):
    """Both `rate` and `rule` in one write.

    Why: `rate: r` is short for the plain gradient rule, so there would be two rules.
    Wrong:  learn: {rate: 0.1, rule: {momentum: {decay: 0.9}}}
    Right:  learn: {rule: {momentum: {rate: 0.1, decay: 0.9}}}
    """

    code = "NLC113"


class StoreAndOwns(Diagnostic):
    """A learner with a store that also owns tensors declared elsewhere.

    Why: a learner moves either its own tensors or others.
    Wrong:  W: {store: {matrix: [K, V]}, owns: rest}
    Right:  W: {owns: rest}
    """

    code = "NLC116"


class EveryAndWhen(Diagnostic):
    """A reset with both `every` and `when`, or with neither.

    Why: one clock decides when a learner begins anew.
    Wrong:  reset: {every: 512 tokens, when: new(task)}
    Right:  reset: {every: 512 tokens}
    """

    code = "NLC117"


UseFile = Callable[[str, Span], Spec]
"""Loads the file that `uses` names; raises SpecError."""


def spec_from_text(text: str, file: str, use_file: UseFile) -> Spec:
    """The typed spec of one file; raises SpecError with all its mistakes."""
    sources = {file: text}
    document = read(text, file)
    problems = [*document.problems, *check_form(document)]
    spec: Spec | None = None
    if isinstance(document.root, Mapping) and not any(isinstance(p, WrongVersion) for p in problems):
        spec = _Conversion(document.root, file, problems, sources, use_file).spec()
    if problems or spec is None:
        raise SpecError(orderly(problems), sources)
    return spec


def _entries(node: Node | None) -> Iterator[Entry]:
    """The entries of a map; nothing where the form was wrong and is reported already."""
    if isinstance(node, Mapping):
        yield from node.entries.values()


def _mappings(node: Node | None) -> Iterator[tuple[Entry, Mapping]]:
    for entry in _entries(node):
        if isinstance(entry.value, Mapping):
            yield entry, entry.value


def _spans(mapping: Mapping) -> dict[str, Span]:
    return {key: entry.key_span for key, entry in mapping.entries.items()}


class _Conversion:
    def __init__(self, root: Mapping, file: str, problems: Problems, sources: dict[str, str], use_file: UseFile) -> None:
        self.root = root
        self.file = file
        self.problems = problems
        self.sources = sources
        self.use_file = use_file
        self.names: dict[str, Span] = {}
        self.unknown_keys = {problem.span for problem in problems if isinstance(problem, UnknownKey)}
        self.templates = Templates(root.get("templates"), problems)

    def spec(self) -> Spec:
        root = self.root
        dims = tuple(Dim(e.key, size(e.value, self.problems), e.key_span) for e in self.defined("dims"))
        params = tuple(Param(e.key, self.param(e.value), e.key_span) for e in self.defined("params"))
        inputs = tuple(self.input(e) for e in self.defined("inputs"))
        uses = tuple(use for e in self.defined("uses") if (use := self.use(e)) is not None)
        flows = tuple(self.flow(e) for e in self.defined("flows"))
        self.check_templates()
        levels = tuple(self.level(entry, form) for entry, form in _mappings(root.get("levels")))
        outputs = tuple(self.flow(e) for e in self.named(root.get("outputs")))
        loss = expression(root.entries["loss"].value, self.problems) if "loss" in root.entries else None
        name, sequence = self.name(), self.sequence(root.entries.get("sequence"))
        self.sources |= {file: text for use in uses for file, text in use.spec.sources.items()}
        doc, spans = self.doc(), _spans(root)
        parts = (dims, params, inputs, uses, flows, levels, outputs, loss)
        presets = tuple(
            self.preset(entry, [*(dim.name for dim in dims), *(param.name for param in params)]) for entry in _entries(root.get("presets"))
        )
        return Spec(self.file, name, doc, *parts, root.span, spans, self.sources, sequence, self.require(root.get("require")), presets)

    def preset(self, entry: Entry, known: list[str]) -> Preset:
        """Values of dims and params by name."""
        values = []
        for each in _entries(entry.value):
            if each.key not in known:
                help = did_you_mean(each.key, known) or f"it has: {', '.join(known) or 'none'}"
                self.problems.append(UnknownKey(f"the spec has no dim or param `{each.key}`", each.key_span, help))
            values.append((each.key, self.param(each.value)))
        return Preset(entry.key, tuple(values), entry.key_span)

    def require(self, node: Node | None) -> tuple[Expr, ...]:
        return tuple(expression(item, self.problems) for item in node.items) if isinstance(node, Sequence) else ()

    def sequence(self, entry: Entry | None) -> Sequences | None:
        if entry is None or not isinstance(entry.value, Mapping) or "starts" not in entry.value.entries:
            return None
        return Sequences(expression(entry.value.entries["starts"].value, self.problems), entry.key_span)

    def name(self) -> str:
        node = self.root.get("name")
        if not isinstance(node, Scalar) or node.kind != "str":
            return ""
        check_name(node.text, node.span, self.problems, free=False)
        return node.text

    def doc(self) -> str:
        node = self.root.get("doc")
        return node.text if isinstance(node, Scalar) else ""

    def named(self, node: Node | None) -> Iterator[Entry]:
        """The entries of a map whose keys are names."""
        for entry in _entries(node):
            check_name(entry.key, entry.key_span, self.problems, free=False)
            yield entry

    def defined(self, section: str) -> Iterator[Entry]:
        """The entries of a map whose keys are names of this spec."""
        for entry in _entries(self.root.get(section)):
            self.define(entry)
            yield entry

    def define(self, entry: Entry) -> None:
        check_name(entry.key, entry.key_span, self.problems)
        first = self.names.setdefault(entry.key, entry.key_span)
        if first is not entry.key_span:
            help = "dims, params, inputs, uses, flows and learners share one set of names"
            self.problems.append(DefinedTwice(f"`{entry.key}` is defined twice", entry.key_span, help, (("first defined here", first),)))

    def flow(self, entry: Entry) -> Flow:
        return Flow(entry.key, expression(entry.value, self.problems), entry.key_span)

    def param(self, node: Node) -> Expr:
        """A number, or the axes of a tensor."""
        before = len(self.problems)
        if isinstance(node, Sequence):
            return ListOf(axes(node, "a tensor", self.problems), node.span)
        expr = expression(node, self.problems)
        word = isinstance(expr, Name) and expr.name in DTYPES
        if not isinstance(expr, Number) and not word and len(self.problems) == before:
            help = "computed values stand in `flows`"
            self.problems.append(WrongKind("a param is a number, a precision, or the list of axes of a tensor", node.span, help))
        return expr

    def input(self, entry: Entry) -> Input:
        node, name, span = entry.value, entry.key, entry.key_span
        match node:
            case Sequence():
                return Input(name, "tensor", axis_names(node, f"`{name}`", self.problems), None, span)
            case Scalar(kind="str", text=text) if text in INPUT_WORDS:
                return Input(name, text, None, None, span)
            case Mapping(entries=entries) if len(entries) == 1:
                return self.bound_input(entry, next(iter(entries.values())))
            case Broken():
                pass
            case Scalar(kind="str", text=text):
                known = (d.key for d in _entries(self.root.get("dims")))
                help = f"write `[{text}]`" if text in known else did_you_mean(text, INPUT_WORDS)
                message = f"`{name}` is neither a list of axes nor one of {listed(INPUT_WORDS)}"
                self.problems.append(UnknownWord(message, node.span, help or "write a list such as `[H, K]`"))
            case _:
                message = f"`{name}` must be a list of axes, a word such as `gradient`, or `{{index: ..}}`, not {describe(node)}"
                self.problems.append(WrongKind(message, node.span if isinstance(node, Scalar) and node.text else span))
        return Input(name, "tensor", None, None, span)

    def bound_input(self, entry: Entry, form: Entry) -> Input:
        """`{index: vocab}`, or axes for a word: `{gradient: [O, I]}`."""
        if form.key == "index":
            return Input(entry.key, "index", (), size(form.value, self.problems), entry.key_span)
        if form.key not in INPUT_WORDS:
            words = ("index", *INPUT_WORDS)
            message = f"`{form.key}` is not a kind of input: {listed(words)}"
            self.problems.append(UnknownWord(message, form.key_span, did_you_mean(form.key, words)))
            return Input(entry.key, "tensor", None, None, entry.key_span)
        return Input(entry.key, form.key, axis_names(form.value, f"`{form.key}`", self.problems), None, entry.key_span)

    def use(self, entry: Entry) -> Use | None:
        node = entry.value
        if not isinstance(node, Scalar) or node.kind != "str":
            return None
        try:
            spec = self.use_file(node.text, node.span)
        except SpecError as error:
            self.sources |= error.sources
            self.problems.extend(error.diagnostics)
            return None
        return Use(entry.key, node.text, spec, entry.key_span)

    def check_templates(self) -> None:
        """Templates are read as learners once by themselves, so that unused ones have no mistakes either."""
        for entry, form in self.templates.all():
            check_name(entry.key, entry.key_span, self.problems, free=False)
            self.learner(entry, form)

    def level(self, entry: Entry, form: Mapping) -> Level:
        check_name(entry.key, entry.key_span, self.problems, free=False)
        every = period(form.entries["every"].value, self.problems) if "every" in form.entries else None
        learners = []
        for learner, body in _mappings(form.get("learners")):
            self.define(learner)
            whole = self.templates.expand(body)
            if whole is not None:
                learners.append(self.learner(learner, whole))
                self.check_whole(learner, whole)
        return Level(entry.key, every, tuple(learners), entry.key_span, self.word(form.get("remainder")) or "carry", _spans(form))

    def check_whole(self, entry: Entry, form: Mapping) -> None:
        """What a learner must have once its template is merged."""
        store = form.get("store")
        if "store" in form.entries and "owns" in form.entries:
            place = form.entries["owns"].key_span
            self.problems.append(StoreAndOwns(f"`{entry.key}` has both a store and `owns`", place, "remove one of the two"))
        elif "owns" not in form.entries and self.lacks(form, "store") and self.lacks(form, "owns"):
            help = "a learner holds tensors: `store: {matrix: [K, V]}`, or `owns: rest`"
            self.problems.append(MissingKey(f"the learner `{entry.key}` has no `store`", entry.key_span, help))
        if isinstance(store, Mapping) and is_inline(store):
            for key in ("params", "call"):
                if self.lacks(store, key):
                    place, help = form.entries["store"].key_span, "a store is `params` and `call`, or one call such as `{matrix: [K, V]}`"
                    self.problems.append(MissingKey(f"the store of `{entry.key}` has no `{key}`", place, help))

    def lacks(self, form: Mapping, key: str) -> bool:
        """Whether a key is missing, and not because of something that is reported already, such as a typo in it."""
        if key in form.entries or form.incomplete:
            return False
        return not any(e.key_span in self.unknown_keys and closest(e.key, (key,)) for e in form.entries.values())

    def learner(self, entry: Entry, form: Mapping) -> Learner:
        def optional(key: str) -> Expr | None:
            return expression(form.entries[key].value, self.problems) if key in form.entries else None

        store = self.store(form.entries["store"]) if "store" in form.entries else None
        per = axes(form.entries["per"].value, "`per`", self.problems) if "per" in form.entries else ()
        learn = self.writes(form.entries["learn"]) if "learn" in form.entries else ()
        read, scope, reset = self.word(form.get("read")), self.word(form.get("scope")), self.reset(form.entries.get("reset"))
        view = function(form.entries["view"].value, "view", self.problems) if "view" in form.entries else None
        backprop = self.backprop(form.entries["backprop"].value) if "backprop" in form.entries else None
        given = (store, optional("owns"), per, self.for_each(form, "init"), learn, read, scope)
        return Learner(entry.key, *given, entry.key_span, _spans(form), view, reset, backprop)

    def reset(self, entry: Entry | None) -> Reset | None:
        if entry is None or not isinstance(entry.value, Mapping):
            return None
        form = entry.value.entries
        every = period(form["every"].value, self.problems) if "every" in form else None
        when, to = (expression(form[key].value, self.problems) if key in form else None for key in ("when", "to"))
        if "every" in form and "when" in form:
            note = ("the period stands here", form["every"].key_span)
            help = "leave one of the two out"
            self.problems.append(EveryAndWhen("a reset has both `every` and `when`", form["when"].key_span, help, (note,)))
        elif not {"every", "when"} & form.keys() and not self.unknown_keys & {e.key_span for e in form.values()}:
            help = "write `reset: {every: 512 tokens}` or `reset: {when: new(task)}`"
            self.problems.append(EveryAndWhen("a reset has neither `every` nor `when`", entry.key_span, help))
        return Reset(every, when, to, entry.key_span, _spans(entry.value))

    def backprop(self, node: Node) -> str | Period | None:
        """A word, or `{truncated: 64 tokens}`."""
        words = (*BACKPROP, "{truncated: 64 tokens}")
        match node:
            case Scalar(kind="str", text=text) if text in BACKPROP:
                return text
            case Mapping(entries=entries) if list(entries) == ["truncated"]:
                return period(entries["truncated"].value, self.problems, "truncated")
            case Mapping(incomplete=False) | Sequence():
                wrong = f"`backprop` must be {listed(words)}, not {describe(node)}"
                self.problems.append(WrongKind(wrong, node.span, "for example `backprop: {truncated: 64 tokens}`"))
            case Scalar(text="truncated"):
                self.problems.append(WrongKind("`truncated` needs a number of tokens", node.span, "`backprop: {truncated: 64 tokens}`"))
            case Scalar():
                self.problems.append(self.wrong_word(node, words, "backprop"))
        return None

    def word(self, node: Node | None) -> str | None:
        return node.text if isinstance(node, Scalar) else None

    def store(self, entry: Entry) -> Store | None:
        node = entry.value
        if isinstance(node, Mapping) and is_inline(node):
            tensors = []
            for tensor in self.named(node.get("params")):
                check_name(tensor.key, tensor.key_span, self.problems)
                tensors.append((tensor.key, axes(tensor.value, f"`{tensor.key}`", self.problems), tensor.key_span))
            body = node.get("call")
            return Store(None, tuple(tensors), function(body, "call", self.problems) if body is not None else None, entry.key_span)
        if isinstance(node, Mapping) or (isinstance(node, Scalar) and node.kind == "str"):
            return Store(call(node, "store", self.problems), (), None, entry.key_span)
        return None

    def writes(self, entry: Entry) -> tuple[Write, ...]:
        match entry.value:
            case Mapping() as form:
                return (self.write(form, entry.key_span),)
            case Sequence(items=items, span=span):
                if not items:
                    self.problems.append(WrongKind("`learn` is an empty list", span, "leave `learn` out if the learner does not learn"))
                return tuple(self.write(item, item.span) for item in items if isinstance(item, Mapping))
        return ()

    def write(self, form: Mapping, span: Span) -> Write:
        def optional(key: str) -> Expr | None:
            return expression(form.entries[key].value, self.problems) if key in form.entries else None

        if "rate" in form.entries and "rule" in form.entries:
            note = ("the rule stands here", form.entries["rule"].key_span)
            place = form.entries["rate"].key_span
            self.problems.append(RateAndRule("`rate` together with `rule`", place, "give the rate to the rule", (note,)))
        fold = self.fold(form.entries["fold"].value) if "fold" in form.entries else None
        at = self.state(form.entries["at"].value) if "at" in form.entries else None
        rule = self.rule(form.entries["rule"].value) if "rule" in form.entries else None
        key, value, minimize = optional("key"), optional("value"), optional("minimize")
        solve, over = self.word(form.get("solve")), self.over(form.get("over"))
        weight, times = optional("weight"), optional("times")
        keep, rate = self.for_each(form, "keep"), optional("rate")
        return Write(key, value, minimize, fold, at, keep, rate, rule, span, _spans(form), solve, over, weight, times)

    def over(self, node: Node | None) -> Period | None:
        """`all`, or a number of tokens."""
        if node is None:
            return None
        if isinstance(node, Scalar) and node.text.strip() == "all":
            return Period(Number(0, node.span), "all", node.span)
        return period(node, self.problems)

    def for_each(self, form: Mapping, key: str) -> Expr | dict[str, Expr] | None:
        """One expression, or one for each tensor. A map with one entry reads as a call; the graph builder knows the tensors."""
        entry = form.entries.get(key)
        if entry is None:
            return None
        if isinstance(entry.value, Mapping) and len(entry.value.entries) > 1:
            return {tensor.key: expression(tensor.value, self.problems) for tensor in self.named(entry.value)}
        return expression(entry.value, self.problems)

    def rule(self, node: Node) -> Call | dict[str, Call] | None:
        """A call, or one for each of several tensors: a map of calls that are maps themselves."""
        if not isinstance(node, Mapping) or len(node.entries) < 2 or not all(_is_call_of_a_map(e.value) for e in node.entries.values()):
            return call(node, "rule", self.problems)
        calls = {entry.key: call(entry.value, f"rule` of `{entry.key}", self.problems) for entry in self.named(node)}
        return {name: each for name, each in calls.items() if each is not None}

    def state(self, node: Node) -> Expr:
        """A word, or a function of the weights."""
        before = len(self.problems)
        expr = expression(node, self.problems, function=True)
        named = isinstance(expr, Lambda) or (isinstance(expr, Name) and expr.name in STATES)
        if not named and len(self.problems) == before and not isinstance(node, Broken):
            self.problems.append(self.wrong_word(node, STATES, "at"))
        return expr

    def fold(self, node: Node) -> Expr | dict[str, str] | None:
        """A word, or a word for each axis."""
        if isinstance(node, Mapping):
            if not node.entries and not node.incomplete:
                self.problems.append(WrongKind("`fold` is an empty map", node.span, "write `{row: mean, token: mean}`"))
            return {entry.key: self.fold_word(entry.value) for entry in self.named(node)}
        return Name(self.fold_word(node), node.span)

    def fold_word(self, node: Node) -> str:
        if isinstance(node, Scalar) and node.kind == "str" and node.text in FOLDS:
            return node.text
        if not isinstance(node, Broken):
            self.problems.append(self.wrong_word(node, FOLDS, "fold"))
        return FOLDS[0]

    def wrong_word(self, node: Node, words: tuple[str, ...], key: str) -> Diagnostic:
        if isinstance(node, Scalar) and node.kind == "str":
            return unknown_word(node, words, f"`{key}`")
        return WrongKind(f"`{key}` must be {listed(words)}, not {describe(node)}", node.span)


def _is_call_of_a_map(node: Node) -> bool:
    """`{name: {..}}`, a call whose arguments are written as a map."""
    return isinstance(node, Mapping) and len(node.entries) == 1 and all(isinstance(e.value, Mapping) for e in node.entries.values())
