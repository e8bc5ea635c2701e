"""`templates` and `use`: a learner is laid over a template; maps merge deeply, lists and single values are replaced.

Merging works on the YAML tree, so every key keeps the place it was written at.
"""

from __future__ import annotations

from nlc.diagnostics import Diagnostic
from nlc.language.values import Problems
from nlc.language.wording import did_you_mean_or_list, quoted
from nlc.language.yaml_tree import Entry, Mapping, Node, Scalar

MAX_CHAIN = 16


class UnknownTemplate(Diagnostic):
    """A `use` that names no template.

    Why: the learner would lack everything the template was to give.
    Wrong:  M: {use: bocks}
    Right:  M: {use: box}
    """

    code = "NLC120"


class RecursiveTemplate(Diagnostic):
    """A template that is laid over itself, directly or through others.

    Why: such a template has no end.
    Wrong:  templates: {a: {use: b}, b: {use: a}}
    Right:  templates: {a: {use: b}, b: {per: [H]}}
    """

    code = "NLC121"


class TemplatesTooDeep(Diagnostic):
    """Templates that use templates that use templates, beyond any use.

    Why: nobody can see what such a learner is, and each layer makes reading slower.
    Wrong:  a chain of 17 templates
    Right:  fewer layers of templates
    """

    code = "NLC122"


class Templates:
    """The templates of one file. A mistake in a template is placed there, so it is one mistake however many use it."""

    def __init__(self, forms: Node | None, problems: Problems) -> None:
        self._forms = forms.entries if isinstance(forms, Mapping) else {}
        self._order = list(self._forms)
        self._problems = problems
        self._too_deep = False

    def all(self) -> list[tuple[Entry, Mapping]]:
        """Every template, expanded, so that mistakes in unused ones are found too."""
        forms = [(entry, entry.value) for entry in self._forms.values() if isinstance(entry.value, Mapping)]
        return [(entry, whole) for entry, form in forms if (whole := self.expand(form, entry.key)) is not None]

    def expand(self, form: Mapping, name: str | None = None) -> Mapping | None:
        """A learner, or the template `name`, laid over its templates; None where a mistake was reported."""
        names = [] if name is None else [name]
        forms = [form]
        while (use := forms[-1].entries.get("use")) is not None:
            below = self._below(use, names)
            if below is None:
                return None
            forms.append(below)
        whole = forms.pop()
        while forms:
            over = forms.pop()
            whole = merged("learner", whole, Mapping(_without_use(over), over.span, over.incomplete))
        return whole

    def _below(self, use: Entry, names: list[str]) -> Mapping | None:
        """The template that `use` names, which is added to `names`; None where it is a mistake."""
        if not isinstance(use.value, Scalar) or use.value.kind != "str":
            return None
        name = use.value.text
        if name not in self._forms:
            help = did_you_mean_or_list(name, self._order[:20], "templates of this file") if self._order else "this file has no `templates`"
            self._problems.append(UnknownTemplate(f"unknown template {quoted(name)}", use.value.span, help))
            return None
        if name in names:
            self._problems.append(self._circle(names[names.index(name) :]))
            return None
        if len(names) >= MAX_CHAIN:
            if not self._too_deep:
                self._problems.append(TemplatesTooDeep(f"templates use each other more than {MAX_CHAIN} deep", use.value.span))
            self._too_deep = True
            return None
        names.append(name)
        form = self._forms[name].value
        return form if isinstance(form, Mapping) else None

    def _circle(self, names: list[str]) -> Diagnostic:
        """The same message wherever the circle is entered: it starts at the template that is written first."""
        first = names.index(min(names, key=self._order.index))
        names = names[first:] + names[:first]
        last = self._forms[names[-1]].value
        place = last.entries["use"].value.span if isinstance(last, Mapping) else last.span
        circle = " -> ".join((*names, names[0]))
        return RecursiveTemplate(f"the template `{names[0]}` uses itself: {circle}", place)


def _without_use(form: Mapping) -> dict[str, Entry]:
    return {key: entry for key, entry in form.entries.items() if key != "use"}


_PARTS = {"learner": {"store": "store", "learn": "learn", "reset": "names"}, "store": {"params": "names"}, "learn": {"fold": "names"}}
"""What the values of a kind of map are, where they are not plain expressions."""


def merged(kind: str, base: Mapping, over: Mapping) -> Mapping:
    """`over` laid on `base`. The keys of `base` come first, in its order."""
    entries = dict(base.entries)
    for key, entry in over.entries.items():
        below = entries.get(key)
        value = entry.value if below is None else _laid(_PARTS.get(kind, {}).get(key, "call"), below.value, entry.value)
        place = entry.key_span if below is None or value is entry.value else below.key_span
        entries[key] = Entry(key, place, value)
    return Mapping(entries, over.span, base.incomplete or over.incomplete)


def _laid(kind: str, base: Node, over: Node) -> Node:
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    if kind in ("learn", "names") or (kind == "store" and is_inline(base) and is_inline(over)):
        return merged(kind, base, over)
    if kind == "call" or kind == "store":
        return _laid_call(base, over)
    return over


def is_inline(store: Mapping) -> bool:
    """Whether a store is written as `params` and `call`, and not as a call of a file."""
    return "params" in store.entries or "call" in store.entries


def _laid_call(base: Mapping, over: Mapping) -> Node:
    """Two calls of the same name merge their arguments; a call of another name replaces the first."""
    if len(base.entries) != 1 or base.entries.keys() != over.entries.keys():
        return over
    (name,) = base.entries
    below, above = base.entries[name], over.entries[name]
    if not isinstance(below.value, Mapping) or not isinstance(above.value, Mapping):
        return over
    return Mapping({name: Entry(name, above.key_span, merged("names", below.value, above.value))}, over.span)
