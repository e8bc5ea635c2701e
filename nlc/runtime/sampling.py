"""Text from a trained model: the prompt in one call of `forward`, then one byte a call of `step`.

Axes: V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from nlc.api import compile as compile_spec
from nlc.diagnostics import NOWHERE, DataError, UsageError
from nlc.graph.outer import held_by
from nlc.runtime import checkpoint, codes
from nlc.runtime.byte_model import BYTES, byte_model
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.random import uniform
from nlc.runtime.run_folder import source_of


def load_run(run: str | Path, backend: str = "eager", read: str | None = None) -> CompiledSpec:
    """The spec of a run with the parameters of its latest checkpoint. Raises DataError (NLC72x).

    read: a learner over weights; these are taken as it holds them.
    """
    folder = Path(run)
    source = source_of(folder)
    compiled = compile_spec(source.spec, source.dims, source.params, backend, library=source.library)
    over = [m.id for m in compiled.graph.learners.values() if m.like_weights]
    if read is not None and read not in over:
        known = f"; there are: {', '.join(over)}" if over else ": the spec has none"
        raise UsageError(f"`{read}` is no learner over weights{known}")
    checkpoint.load_parameters(compiled, folder, source.meaning, held_by(compiled.graph, read) if read is not None else None)
    return compiled


def sample(
    run: str | Path | CompiledSpec,
    prompt: str | bytes = "\n",
    tokens: int = 200,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    backend: str = "eager",
) -> bytes:
    """`tokens` bytes that follow the prompt; see `stream`."""
    return b"".join(stream(run, prompt, tokens, temperature, top_k, seed, backend))


def stream(
    run: str | Path | CompiledSpec,
    prompt: str | bytes = "\n",
    tokens: int = 200,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    backend: str = "eager",
    read: str | None = None,
) -> Iterator[bytes]:
    """The bytes that follow the prompt, one by one.

    temperature: 0 takes the likeliest byte. top_k: only the k likeliest bytes, 0 for all. Byte i depends on the seed and
    on what came before it. read: a learner over weights, such as an average, of whose tensors a run is sampled. Raises
    DataError for a run that cannot be read, or a prompt that the model cannot read.
    """
    data = prompt.encode() if isinstance(prompt, str) else prompt
    if not temperature >= 0 or temperature == float("inf") or tokens < 0 or top_k < 0:
        raise UsageError("temperature, tokens and top_k are at least 0")
    if not data:
        raise UsageError("the prompt is empty; a line break (`\\n`) begins a text")
    compiled = run if isinstance(run, CompiledSpec) else load_run(run, backend, read)
    model = byte_model(compiled.graph)
    if max(data) >= model.vocabulary:
        message = f"the prompt has the byte {max(data)}; the model's vocabulary ends at {model.vocabulary - 1}"
        raise DataError([codes.ByteOutsideVocabulary(message, NOWHERE)])
    return _decode(compiled, data, tokens, temperature, top_k, seed)


def _decode(compiled: CompiledSpec, data: bytes, tokens: int, temperature: float, top_k: int, seed: int) -> Iterator[bytes]:
    model = byte_model(compiled.graph)
    outputs, state = _calm(compiled(model.prompt(data)))
    scores_V = outputs[model.scores][0, -1]
    for i in range(tokens):
        byte = pick(scores_V[:BYTES], temperature, top_k, uniform(seed, i))
        yield bytes([byte])
        if i + 1 < tokens:
            outputs, state = _calm(compiled.step({model.tokens: torch.tensor([byte])}, state))
            scores_V = outputs[model.scores][0]


def _calm(results: tuple[dict[str, Tensor], dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and state without the graph of their gradients, which would grow with every byte."""
    outputs, state = results
    return {name: x.detach() for name, x in outputs.items()}, {name: x.detach() for name, x in state.items()}


def pick(scores_V: Tensor, temperature: float, top_k: int, chance: float) -> int:
    """The entry at `chance` in [0, 1) of the distribution, entries in the order of their scores."""
    scores_V = scores_V.detach().cpu().double()
    ordered_V, entries_V = scores_V.sort(descending=True, stable=True)
    if temperature == 0:
        return int(entries_V[0])
    if 0 < top_k < len(ordered_V):
        ordered_V = ordered_V[:top_k]
    below_V = torch.softmax(ordered_V / temperature, 0).cumsum(0)
    return int(entries_V[min(int((below_V <= chance * below_V[-1]).sum()), len(ordered_V) - 1)])
