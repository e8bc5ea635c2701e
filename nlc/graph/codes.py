"""The mistakes that are found while names, shapes and clocks are resolved."""

from __future__ import annotations

from nlc.diagnostics import Diagnostic


class UndefinedName(Diagnostic):
    """A name that is no flow, input, dim, param or learner here.

    Why: an expression may only use what the spec declares.
    Wrong:  outputs: {o: S(qq)}
    Right:  outputs: {o: S(q)}
    """

    code = "NLC201"


class UnknownOperator(Diagnostic):
    """A call of something that is neither an operator, a learner nor a used spec.

    Why: expressions are read by a whitelist; nothing else is executed.
    Wrong:  y: sigmoyd(x)
    Right:  y: sigmoid(x)
    """

    code = "NLC202"


class WrongArguments(Diagnostic):
    """A call with too many, too few or misnamed arguments.

    Why: each operator takes a fixed list of arguments.
    Wrong:  y: linear(x)
    Right:  y: linear(x, [H, K])
    """

    code = "NLC203"


class NotAValue(Diagnostic):
    """A learner, a used spec, a list or a function where a value is needed.

    Why: a learner is a function: it has a value only for a query.
    Wrong:  y: S + x
    Right:  y: S(q) + x
    """

    code = "NLC204"


class NotConstant(Diagnostic):
    """A size, a period or a distribution that depends on the data.

    Why: sizes and periods must be known when the spec is compiled: they are made of numbers, dims and params.
    Wrong:  y: linear(x, [q])
    Right:  y: linear(x, [K])
    """

    code = "NLC205"


class NotAllowed(Diagnostic):
    """A value that a spec excludes with `require`.

    Why: outside these values the formula has no meaning, or learns nothing.
    Wrong:  rule: {adam: {b1: 1.5}}
    Right:  rule: {adam: {b1: 0.9}}
    """

    code = "NLC207"


class FlowCycle(Diagnostic):
    """A flow that is defined by itself.

    Why: within a tick every flow is computed once; what goes round in time must pass through a learner.
    Wrong:  flows: {a: b + 1, b: a * 2}
    Right:  flows: {a: x + 1, b: a * 2}
    """

    code = "NLC206"


class ShapeMismatch(Diagnostic):
    """Operands whose axes do not fit together.

    Why: axes are matched by name; the axes of one operand must contain those of the other.
    Wrong:  inputs: {k: [H, K], v: [H, V]}    flows: {y: k * v}
    Right:  inputs: {k: [H, K], v: [H, K]}    flows: {y: k * v}
    """

    code = "NLC301"


class WrongType(Diagnostic):
    """An index where a number is needed, or the other way round.

    Why: an index names a row of a table; arithmetic on it is meaningless.
    Wrong:  inputs: {tokens: {index: vocab}}    flows: {y: tokens * 2}
    Right:  inputs: {tokens: {index: vocab}}    flows: {y: "embed(tokens, vocab, d)"}
    """

    code = "NLC302"


class BadSize(Diagnostic):
    """A dim that is not a whole number of at least 1, or a dim that callers bind to two sizes.

    Why: a dim is the length of an axis.
    Wrong:  dims: {K: 0}
    Right:  dims: {K: 64}
    """

    code = "NLC303"


class TickCycle(Diagnostic):
    """Learners that need each other's new state in the same tick.

    Why: the updates of a tick form an acyclic graph, else there is no order in which to run them.
    Wrong:  A: {.., learn: {key: B(k), ..}}    B: {.., learn: {key: A(k), ..}}
    Right:  A: {.., read: before, ..}          B: {.., learn: {key: A(k), ..}}
    """

    code = "NLC401"


class NonCausal(Diagnostic):
    """The next token used outside the loss.

    Why: an output or a memory that sees the next token cannot run on a stream, and a model that is trained so cheats.
    Wrong:  outputs: {y: next(x)}
    Right:  loss: cross_entropy(logits, next(tokens))
    """

    code = "NLC402"


class BadPeriod(Diagnostic):
    """A period that is not a whole number of at least 1.

    Why: time is counted in integers; the frequency is 1 / period.
    Wrong:  every: 0 tokens
    Right:  every: 16 tokens
    """

    code = "NLC403"


class MixedLevel(Diagnostic):
    """Learners grouped in one level although their frequencies differ.

    Why: a level is a set of learners that update equally often; its period stands on the level.
    Wrong:  a learner on the update clock inside `every: 1 token`
    Right:  put it into a rule
    """

    code = "NLC404"


class NotCompiledYet(Diagnostic):
    """A part of language 1 that this version of nlc does not compile.

    Why: nothing is ever ignored silently; what is not implemented is refused.
    Wrong:  learn: [{key: k, value: v}, {key: p, value: w}]
    Right:  learn: {key: k, value: v}
    """

    code = "NLC501"


class Untouched(Diagnostic):
    """A learner that is never written and starts as a constant.

    Why: it would be a constant; most often `init: learned` or `learn:` was forgotten.
    Wrong:  S: {store: {matrix: [K, V]}}
    Right:  S: {store: {matrix: [K, V]}, init: learned}
    """

    code = "NLC502"


class MissingPart(Diagnostic):
    """A learner without something its other keys need: a store, a value, a loss.

    Why: a learner is a store, a context and an objective; nothing of that can be guessed.
    Wrong:  S: {learn: {key: k, value: v}}
    Right:  S: {store: {matrix: [K, V]}, learn: {key: k, value: v}}
    """

    code = "NLC503"


class BadChoice(Diagnostic):
    """A word that is not among the legal ones of this key.

    Why: each key has a short list of meanings.
    Wrong:  read: afterwards
    Right:  read: after
    """

    code = "NLC504"


class UnusedTensor(Diagnostic):
    """A tensor of a store that its `call` does not use.

    Why: nothing would ever change it or read it; most often the expression lacks a term.
    Wrong:  store: {params: {W: [V, K], b: [V]}, call: z -> W @ z}
    Right:  store: {params: {W: [V, K], b: [V]}, call: z -> W @ z + b}
    """

    code = "NLC506"


class CannotLower(Diagnostic):
    """A learner that has a meaning but no parallel or recurrent program in this version.

    Why: only learners whose rule is linear in their state are compiled; the reference backend runs the rest.
    Wrong:  value: tanh(self(p))
    Right:  value: v - self(p), or backend="reference"
    """

    code = "NLC601"
