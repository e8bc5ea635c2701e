"""Mistakes at run time: tensors, texts, checkpoints, folders, backends."""

from __future__ import annotations

from nlc.diagnostics import Diagnostic


class BadInput(Diagnostic):
    """A tensor of a wrong shape or dtype, a missing or an unknown one.

    Why: inputs are `[B, T, *axes]` as the spec declares them; nothing is broadcast or cast silently.
    Wrong:  compiled({"q": q})                    where the spec also has the input `k`
    Right:  compiled({"q": q, "k": k, "v": v})
    """

    code = "NLC701"


class BadState(Diagnostic):
    """A state whose keys or shapes are not those of `initial_state`.

    Why: a stream goes on only with all of its state.
    Wrong:  compiled(inputs, {"S": S[0]})
    Right:  compiled(inputs, {"S": S})            `[B, H, K, V]` for a store {matrix: [K, V]} with per: [H]
    """

    code = "NLC702"


class UnknownBackend(Diagnostic):
    """A backend that nlc does not have.

    Why: a backend is a name of a fixed list.
    Wrong:  nlc.compile(path, backend="cuda")
    Right:  nlc.compile(path, backend="inductor").to("cuda")
    """

    code = "NLC703"


class BackendFailed(Diagnostic):
    """The compiler below nlc failed.

    Why: torch.compile, or a tool it calls (a C++ compiler), reported an error.
    Wrong:  backend="inductor" without a C++ compiler
    Right:  install one (Debian: g++), or use backend="eager"
    """

    code = "NLC704"


class MissingPackage(Diagnostic):
    """An optional package is not installed.

    Why: torch-mlir and IREE are large, and only MLIR, `export --as vmfb` and the backend `iree` use them; only GPU code uses triton, and
    only `train --tensorboard` TensorBoard.
    Wrong:  nlc emit memory.yaml --as linalg      without torch-mlir
    Right:  pip install 'nlc[mlir]', then the same command; 'nlc[gpu-emit]' for triton, 'nlc[tensorboard]' for TensorBoard
    """

    code = "NLC705"


class UnknownChip(Diagnostic):
    """A target with a chip that IREE does not know.

    Why: code for a GPU or CPU is made for its instructions and sizes, and IREE has a list of those it knows.
    Wrong:  nlc export memory.yaml --as vmfb --target cuda:sm_90
    Right:  nlc export memory.yaml --as vmfb --target cuda:sm_89      (the driver of a newer GPU compiles its PTX again)
    """

    code = "NLC706"


class NoText(Diagnostic):
    """A training text that cannot be read.

    Why: there is no such file, it is a folder, or its permissions forbid it.
    Wrong:  nlc train model.yaml --text corpus/        (a folder)
    Right:  nlc train model.yaml --text corpus.txt     (or --text builtin)
    """

    code = "NLC710"


class TextTooShort(Diagnostic):
    """A text with fewer bytes than one row for training and one for validation.

    Why: a row has `length` bytes and their successors; the last tenth of the text is kept for validation.
    Wrong:  --text poem.txt --length 4096       (a poem of 2000 bytes)
    Right:  --text poem.txt --length 128
    """

    code = "NLC711"


class ByteOutsideVocabulary(Diagnostic):
    """A text with bytes that the model's vocabulary does not have.

    Why: bytes are the indices of the vocabulary; nothing is left out silently.
    Wrong:  dims: {vocab: 128}      for a text with letters outside ASCII
    Right:  dims: {vocab: 256}
    """

    code = "NLC712"


class NotAByteModel(Diagnostic):
    """A spec that `train` and `sample` cannot use: it is no language model of bytes.

    Why: they need one input that is an index, its scores as an output, the loss `cross_entropy(scores, next(input))`, and
    a learner that owns the weights.
    Wrong:  nlc train memory.yaml
    Right:  nlc train model.yaml
    """

    code = "NLC713"


class NoRun(Diagnostic):
    """A folder that holds no training run, or no checkpoint yet.

    Why: there is nothing to go on from, or to sample with.
    Wrong:  nlc sample out/rnu
    Right:  nlc sample out/run
    """

    code = "NLC720"


class RunExists(Diagnostic):
    """A folder that already holds a run or other files, where a new run was to start.

    Why: a run is never overwritten.
    Wrong:  nlc train model.yaml -o out/run        (a second time)
    Right:  nlc train model.yaml -o out/run --resume
    """

    code = "NLC721"


class CorruptCheckpoint(Diagnostic):
    """A checkpoint whose files are damaged: truncated, changed, or not readable.

    Why: the recorded sizes and sums do not fit; training on would hide the damage.
    Wrong:  a copy of a run that was cut off
    Right:  name the older checkpoint of the run in its file `LATEST`, or copy the run again
    """

    code = "NLC722"


class ForeignCheckpoint(Diagnostic):
    """A checkpoint that was not written by this version of nlc.

    Why: its format is another one, or a newer one.
    Wrong:  a folder of other tensors named like a checkpoint
    Right:  a checkpoint that `nlc train` wrote
    """

    code = "NLC723"


class OtherSpec(Diagnostic):
    """A checkpoint that was made from another spec, or from other dims or params.

    Why: its tensors mean something else.
    Wrong:  nlc train model.yaml --set layers=6 -o out/run --resume       (the run has 5)
    Right:  nlc train model.yaml -o out/run --resume
    """

    code = "NLC724"


class OtherSettings(Diagnostic):
    """A run that is to go on with other settings than it began with.

    Why: going on must be the same, bit for bit, as not having stopped.
    Wrong:  --batch 16 --resume      for a run with --batch 8
    Right:  --batch 8 --resume       (`--steps` may grow)
    """

    code = "NLC725"


class LossNotFinite(Diagnostic):
    """Training that came to a loss, or to weights, that are infinite or not a number.

    Why: every later step would be the same; most often the learning rate is too high.
    Wrong:  rule: {outer: {lr: 10}}
    Right:  rule: {outer: {lr: 3.0e-3}}
    """

    code = "NLC730"


class GradientNotFinite(Diagnostic):
    """A gradient that is infinite or not a number, given to an optimiser that is to refuse it.

    Why: one such number spreads over the weights and over every state of the rule. Nothing was updated.
    Wrong:  nlc.optimizer("rule.yaml", params, nonfinite="raise")     and a loss that overflows
    Right:  clip the gradient, lower the rate, or leave such updates out with nonfinite="skip"
    """

    code = "NLC731"


class StateMisfit(Diagnostic):
    """The saved state of an optimiser that is not one of this rule and these weights.

    Why: a state of another shape, or of another learner, has no meaning here. Nothing was taken over.
    Wrong:  nlc.optimizer("rule.yaml", params).load_state_dict(state of another rule)
    Right:  nlc.optimizer("rule.yaml", params).load_state_dict(state of rule.yaml)
    """

    code = "NLC732"


class NoForeignWeights(Diagnostic):
    """A checkpoint that cannot be read as safetensors: a missing or damaged file, another format, a part outside its folder.

    Why: weights are taken from safetensors files only. Pickled weights (`.bin`, `.pt`) can run any code when they are read.
    Wrong:  nlc adapt pytorch_model.bin --spec model.yaml --map names.yaml -o run
    Right:  nlc adapt model.safetensors --spec model.yaml --map names.yaml -o run
    """

    code = "NLC740"


class NamesMisfit(Diagnostic):
    """Tensors of a checkpoint, or parameters of a spec, that a name map does not bring together one by one.

    Why: a tensor that is left out, or a parameter that keeps its random first values, is a model that computes something else.
    Wrong:  a map without `lm_head.weight`, for a checkpoint and a spec that have it
    Right:  tensors: {lm_head.weight: {to: logits.unembed.W, axes: [1, 0]}}      (or `ignore: [..]`, `fresh: [..]`)
    """

    code = "NLC741"


class TensorMisfit(Diagnostic):
    """A tensor whose shape or kind of numbers is not that of the parameter it is to be, or whose numbers are not finite.

    Why: numbers in the wrong order, or rounded, are another model. Axes may be turned (`axes`), split and joined, nothing else.
    Wrong:  tensors: {q_proj.weight: q.linear.W}            of shape [out, in], for a parameter [in, out]
    Right:  tensors: {q_proj.weight: {to: q.linear.W, axes: [1, 0]}}
    """

    code = "NLC742"


class ConfigMisfit(Diagnostic):
    """A config.json that lacks a number the map takes from it, or says something that the map is not for.

    Why: with another activation, or other positions, the same weights are another model.
    Wrong:  a checkpoint with `hidden_act: gelu`, and a map with `require: {hidden_act: silu}`
    Right:  a map and a spec of that model; a number that is missing may be given, `--set d=64`
    """

    code = "NLC743"


class BadNameMap(Diagnostic):
    """A name map that says something impossible: of a pattern, of axes, of a number of the config.

    Why: a tensor in the wrong place is a model that computes something else, and nothing would say so.
    Wrong:  tensors: {"layers.{i}.norm.weight": "h.{j}.u.rmsnorm.gain"}
    Right:  tensors: {"layers.{i}.norm.weight": "h.{i}.u.rmsnorm.gain"}
    """

    code = "NLC744"


class UnknownLevel(Diagnostic):
    """A level of a session that the spec does not have.

    Why: levels are the learners that minimise the loss while tokens come, by their path in the spec; memories are no levels of this kind.
    Wrong:  session.freeze("F1")          for a spec that calls a block in a flow `y`
    Right:  session.freeze("y.F1")        `session.levels` lists them
    """

    code = "NLC750"


class OtherModel(Diagnostic):
    """A snapshot, or the state of a stream on disk, of another model: another spec, or other weights.

    Why: tensors that learned beside other weights mean nothing beside these.
    Wrong:  nlc stream run --state s.safetensors        with a state that `nlc stream other_run` wrote, or after more training
    Right:  nlc stream run --state new.safetensors
    """

    code = "NLC751"


class NotTogether(Diagnostic):
    """Sessions that cannot be stepped by one call: at different places of their clocks, or of different specs.

    Why: one call has one clock; a boundary must fall at the same token of all rows. Levels that rows share cannot be joined at all.
    Wrong:  Session.joined([at_token_64, at_token_65])
    Right:  [Session.joined(group) for group in Session.grouped(sessions)]
    """

    code = "NLC752"


class BadTokens(Diagnostic):
    """Token ids that cannot be read: words that are no whole numbers, or numbers outside the vocabulary.

    Why: with `--ids` the input is whole numbers with white space between them; nothing is left out silently.
    Wrong:  nlc stream run text.txt --ids        where text.txt holds letters
    Right:  nlc stream run ids.txt --ids         where ids.txt holds: 17 4 250
    """

    code = "NLC753"


class OtherText(Diagnostic):
    """A file with fewer tokens than the stream has already read of it.

    Why: a stream goes on in its file where it stopped; this is another file under the same name, or one that was cut.
    Wrong:  nlc stream run day.log --state s.safetensors        after day.log began anew
    Right:  nlc stream run --state s.safetensors < day.log      (what comes on standard input is new)
    """

    code = "NLC754"


class EndlessLevel(Diagnostic):
    """The end of a sequence, where a level carries the period that is open on.

    Why: what such a level has gathered is learned from when its period is full, and the tokens of another sequence are no part of it.
    Wrong:  session.end()      with `levels: {slow: {every: 512 tokens, learners: ..}}` and `scope: stream`
    Right:  session.end()      with `levels: {slow: {every: 512 tokens, remainder: flush, learners: ..}}`
    """

    code = "NLC755"
