"""The form of a spec file: which keys stand where. `specs/spec-v1.schema.json` is generated from these models.

The models check the form only. Expressions, periods, axes and names are read by `nlc.language.values`, which can say
more about a mistake in them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, WithJsonSchema
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue

VERSION = 1
CLOCKS = ("token", "step", "sequence", "update")
FOLDS = ("sum", "mean", "last", "each")
STATES = ("start", "running", "decayed")
BACKPROP = ("unrolled", "stop", "first_order")
DTYPES = ("same", "bfloat16", "float32", "float64")
"""What a param may be beside a number: how precisely an operator computes; `same` as what it is given."""
INPUT_WORDS = ("gradient", "weights", "input", "error", "pred", "value", "key")
RESERVED = frozenset(
    ("self", "pred", "key", "value", "query", "position", "age", "next", "new", "sg", "total", "training")
    + ("in", "lambda", "and", "or", "not", "true", "false", "null", "True", "False", "None")
)
"""Names that no spec may define (docs/language.md, "Expressions")."""

_NAME = "^[A-Za-z_][A-Za-z0-9_]*$"
_FREE_NAME: JsonDict = {"pattern": _NAME, "not": {"enum": [*sorted(RESERVED)]}}
_EXPRESSION: JsonSchemaValue = {"type": ["string", "number", "object", "array"], "minProperties": 1, "maxProperties": 1}
_AXES: JsonSchemaValue = {"type": "array", "items": {"type": ["string", "integer"]}}
_AXIS_NAMES: JsonSchemaValue = {"type": "array", "items": {"type": ["string", "integer"], "pattern": _NAME, "minimum": 1}}
_NAMED_CALL: JsonSchemaValue = {"type": ["object", "string"], "minProperties": 1, "maxProperties": 1}
_PERIOD: JsonSchemaValue = {"type": "string", "pattern": f"^.+ ({'|'.join(CLOCKS)})s?$", "examples": ["1 token", "16 tokens", "1 step"]}
_INLINE: JsonSchemaValue = {"anyOf": [{"required": ["params"]}, {"required": ["call"]}]}


def _one_of(*forms: JsonSchemaValue) -> JsonSchemaValue:
    return {"anyOf": list(forms)}


def _single(key: str, form: JsonSchemaValue) -> JsonSchemaValue:
    return {"type": "object", "properties": {key: form}, "required": [key], "additionalProperties": False}


def _words(words: tuple[str, ...]) -> JsonSchemaValue:
    return {"enum": list(words)}


# What `nlc.language.values` reads. To pydantic they are anything; the JSON schema says what they look like.
Expression = Annotated[object, WithJsonSchema(_EXPRESSION)]
_GATES: JsonSchemaValue = {"type": "object", "propertyNames": {"pattern": _NAME}, "additionalProperties": _EXPRESSION, "minProperties": 1}
Gate = Annotated[object, WithJsonSchema(_one_of(_EXPRESSION, _GATES))]
Axes = Annotated[object, WithJsonSchema(_AXES)]
_RULES: JsonSchemaValue = {"type": "object", "propertyNames": {"pattern": _NAME}, "additionalProperties": _NAMED_CALL, "minProperties": 2}
RuleForm = Annotated[object, WithJsonSchema(_one_of(_NAMED_CALL, _RULES))]
Size = Annotated[object, WithJsonSchema({"type": ["integer", "string"], "minimum": 1})]
ParamValue = Annotated[object, WithJsonSchema(_one_of({"type": "number"}, _words(DTYPES), _AXES))]
PresetValue = Annotated[object, WithJsonSchema(_one_of({"type": "number"}, _words(DTYPES)))]
Requirements = Annotated[list[object], WithJsonSchema({"type": "array", "items": {"type": "string"}})]
Period = Annotated[object, WithJsonSchema(_PERIOD)]
State = Annotated[object, WithJsonSchema(_one_of(_words(STATES), {"type": "string", "pattern": "->"}))]
_FOLD_MAP: JsonSchemaValue = {"type": "object", "additionalProperties": _words(FOLDS), "minProperties": 1}
Backprop = Annotated[object, WithJsonSchema(_one_of(_words(BACKPROP), _single("truncated", _PERIOD)))]
Fold = Annotated[object, WithJsonSchema(_one_of(_words(FOLDS), _FOLD_MAP))]
_INPUTS = _one_of(_AXIS_NAMES, _words(INPUT_WORDS), _single("index", _EXPRESSION), *(_single(w, _AXIS_NAMES) for w in INPUT_WORDS))
InputForm = Annotated[object, WithJsonSchema(_INPUTS)]
StoreCall = Annotated[dict[str, object], WithJsonSchema({"type": "object", "minProperties": 1, "maxProperties": 1, "not": _INLINE})]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _optional(description: str) -> Any:
    """A key that may be absent. What its absence means is the graph builder's business."""
    return Field(None, description=description)


def _names(description: str) -> Any:
    """A map whose keys are names of the spec; empty when absent."""
    return Field({}, description=description, json_schema_extra={"propertyNames": _FREE_NAME})


class WriteForm(_Strict):
    """One write: w <- keep * w + step, where the step comes from the gradient of `minimize`."""

    key: Expression = _optional("What the memory is asked when it learns. Without a key, the prediction is the tensors themselves.")
    value: Expression = _optional("What the memory should answer to the key.")
    minimize: Expression = _optional(
        "The objective: a file of specs/objectives, a scalar flow such as `loss`, or an expression of `pred` and `value`."
    )
    fold: Fold = _optional(
        "How the samples of a period are taken: sum (default), mean, last or each; or one of these for each axis, row, token or step."
    )
    at: State = _optional(
        "The state the gradient is taken at: start of the period (default), running (before this sample), decayed (running, after keep)."
    )
    keep: Gate = _optional(
        "How much of the old state is kept: a scalar, or a vector on the axis it names; a map gives each tensor its own. Default: 1."
    )
    rate: Expression = _optional("The step size, short for the plain gradient rule; not together with `rule`. Default: 1.")
    rule: RuleForm = _optional("The update rule, a call of a spec: {name: {param: 0.1}}; a map of calls gives each tensor its own.")
    solve: Literal["gradient", "implicit", "exact"] = Field(
        "gradient",
        description="gradient: a step a sample. implicit: the minimum of the objective and of the distance to the kept state. "
        "exact: nothing is stored; each query gets the minimum over the whole context.",
    )
    over: Expression = _optional(
        "The context of `solve: exact`: `all` samples so far, or the last of them, `64 tokens`; a further write without it is counted once."
    )
    times: Expression = _optional("The number of steps on the same sample, each at the state left by the one before. Default: 1.")
    weight: Expression = _optional("How much a sample of the context counts, in terms of `query` and `key`. Default: 1.")


class InlineStore(_Strict):
    """Tensors and the function that recalls from them."""

    params: dict[str, Axes] = _names("The tensors, each with its axes.")
    call: Expression = _optional("What a query returns: `z -> W @ z`.")


def _store_kind(value: object) -> str:
    if not isinstance(value, dict):
        return "<text>"
    return "<inline>" if "params" in value or "call" in value else "<call>"


def _learn_kind(value: object) -> str | None:
    return "<one>" if isinstance(value, dict) else "<several>" if isinstance(value, list) else None


StoreForm = Annotated[
    Annotated[InlineStore, Tag("<inline>")] | Annotated[StoreCall, Tag("<call>")] | Annotated[str, Tag("<text>")],
    Discriminator(_store_kind),
]
LearnForm = Annotated[Annotated[WriteForm, Tag("<one>")] | Annotated[list[WriteForm], Tag("<several>")], Discriminator(_learn_kind)]


class ResetForm(_Strict):
    """When a learner begins anew, before anything else at that token: one of `every` and `when`."""

    every: Period = _optional("The period of the reset, a multiple of the period of the level: `512 tokens`.")
    when: Expression = _optional("A number a token; where it is not 0 the learner begins anew: new(task).")
    to: Expression = _optional(
        "What it begins with: `init`, its first state (default); for weights, what a learner over them holds, `S()`."
    )


class SequenceForm(_Strict):
    """The sequences that one row holds, one after the other."""

    starts: Expression = Field(description="A number a token; where it is not 0 a sequence starts: new(doc).")


class LearnerForm(_Strict):
    """A node that holds tensors. With `learn` it changes them, without it is a function."""

    use: str = _optional("A template that this map is laid over: maps merge, lists and single values are replaced.")
    store: StoreForm = _optional(
        "The tensors and how they are read: a call of a file of specs/stores, {matrix: [K, V]}; {like: name}, a tensor for each "
        "of another; or params and call."
    )
    owns: Expression = _optional("Instead of a store, the tensors declared elsewhere that it moves: rest, matrix, under(name).")
    per: Axes = _optional("The axes of independent copies: [H].")
    init: Gate = _optional(
        "The first state: zeros (default), learned, learned(uniform(0, 2)), or a flow, as it is where the learner begins anew; a map gives "
        "each tensor its own."
    )
    view: Expression = _optional(
        "What calls and gradients see of each tensor: `w -> softmax(w)`. The gradient in what is seen is a step of the tensor itself."
    )
    learn: LearnForm = _optional("One write, or a list of writes at the same time.")
    read: Literal["start", "before", "after"] = Field(
        "after", description="The version that a call sees: at the start of the period, before or after the write of this tick."
    )
    scope: Literal["sequence", "stream", "shared"] = Field(
        "sequence",
        description="sequence: a state for each row, reset at its start. stream: the same, carried on. shared: one state for all rows.",
    )
    reset: ResetForm = _optional("When it begins anew, beside the start of a sequence.")
    backprop: Backprop = _optional(
        "How much of the outer gradient crosses its updates: unrolled (default), stop, first_order (straight to the learned initial state) "
        "or {truncated: 64 tokens}."
    )


class LevelForm(_Strict):
    """A place for learners that change at the same ticks."""

    every: Period = _optional("The period, a count and a clock: `16 tokens`. Without it the learners never change.")
    learners: dict[str, LearnerForm] = Field(description="The learners by name.", json_schema_extra={"propertyNames": _FREE_NAME})
    remainder: Literal["carry", "flush", "drop"] = Field(
        "carry",
        description="What becomes of a period that is open where a sequence ends, of learners of the loss: it goes on with the stream, "
        "is learned from, or not.",
    )


class SpecForm(_Strict):
    """A learner, block, rule, store, objective or model of nlc, language version 1."""

    nlc: Literal[1] = Field(description="The version of the language.")
    name: str = Field(description="The name of this spec, as in messages and generated code.", json_schema_extra={"pattern": _NAME})
    doc: str = Field("", description="What it is and where it comes from.")
    dims: dict[str, Size] = _names("Named sizes: whole numbers, or expressions of other dims.")
    params: dict[str, ParamValue] = _names(
        "Numbers that a caller may replace, or a precision (same, bfloat16, float32, float64); in a store, tensors as lists of axes."
    )
    presets: dict[str, dict[str, PresetValue]] = Field(
        {}, description="Sets of values for dims and params, by name: {10M: {d: 256, layers: 6}}; `--set preset=10M`."
    )
    require: Requirements = Field([], description="What must hold of dims and params: [lr >= 0, b1 < 1].")
    inputs: dict[str, InputForm] = _names(
        "What comes in, one row a token; batch and time are implied. Axes [H, K]; {index: vocab} for whole numbers; "
        "in a rule gradient, weights or input; in an objective pred and value."
    )
    uses: dict[str, str] = _names("Names for other spec files: {block: blocks/gated_delta}.")
    sequence: SequenceForm = _optional("Where sequences start inside a row: {starts: new(doc)}. Without it a row is one sequence.")
    flows: dict[str, Expression] = _names("Named values of this tick, computed from inputs, learners and other flows.")
    templates: dict[str, LearnerForm] = Field({}, description="Parts of learners, laid under a learner by `use`.")
    levels: dict[str, LevelForm] = Field({}, description="Learners, grouped by how often they change.")
    outputs: dict[str, Expression] = Field({}, description="What goes out. A rule has `step` and may have `keep`.")
    loss: Expression = _optional("The scalar that learners with `minimize: loss` make smaller.")


FORMS: dict[str, type[BaseModel]] = {
    "spec": SpecForm,
    "level": LevelForm,
    "learner": LearnerForm,
    "learn": WriteForm,
    "store": InlineStore,
    "reset": ResetForm,
    "sequence": SequenceForm,
}


def json_schema() -> dict[str, object]:
    """The JSON schema that editors use for completion and checks."""
    form = _without_noise(SpecForm.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "nlc spec, language 1", **form}


def _without_noise(form: JsonSchemaValue) -> JsonSchemaValue:
    """Without generated titles and empty defaults, which editors would show and insert."""
    kept = {k: v for k, v in form.items() if not (k == "default" and v in (None, "", {}, [])) and not (k == "title" and isinstance(v, str))}
    return {k: _without_noise(v) if isinstance(v, dict) else v for k, v in kept.items()}
