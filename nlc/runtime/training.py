"""Training of a byte language model: batches, steps, metrics, validation, checkpoints, resuming.

A run is a function of the spec, the text, the settings and the versions: batch i depends on (seed, i) only, and the
deterministic setting is on. A run that was stopped and resumed has the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from nlc.api import compile as compile_spec
from nlc.diagnostics import NOWHERE, DataError, UsageError
from nlc.graph.ir import Clock, LevelGraph
from nlc.graph.order import effective_clock
from nlc.language.library import Library
from nlc.language.spec import Spec
from nlc.runtime import boards, checkpoint, codes, run_folder
from nlc.runtime.byte_model import ByteModel, byte_model
from nlc.runtime.checkpoint import Checkpoint
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.continuity import Names, of_model
from nlc.runtime.determinism import default_threads, deterministic
from nlc.runtime.evaluate import LIMIT, bits_per_byte
from nlc.runtime.packages import require
from nlc.runtime.run_folder import Record, Source
from nlc.runtime.text import Corpus, load_text

TRAINING = ("inductor", "eager")
"""The backends that have gradients of the weights."""
Progress = Callable[[Record], None]
"""Called with every record, logged or not; must not change it."""


@dataclass(frozen=True)
class Settings:
    """What decides the bits of a run beside the spec and the text; a resumed run must have the same."""

    batch: int
    length: int
    seed: int
    backend: str
    threads: int


@dataclass(frozen=True)
class TrainResult:
    """`step` updates were made; `interrupted` by Ctrl-C before `steps`. `metrics` are the lines of metrics.jsonl."""

    run: Path
    step: int
    interrupted: bool
    metrics: list[Record]
    compiled: CompiledSpec
    source: Source
    corpus: Corpus
    settings: Settings
    notes: list[str] = field(default_factory=list)

    def last(self, name: str) -> float | None:
        """The newest value of a metric: `loss`, `bits_per_byte`, `validation_bits_per_byte`, `tokens_per_second`."""
        return next((record[name] for record in reversed(self.metrics) if name in record), None)


def train(
    spec: str | Path | Spec,
    text: str | Path = "builtin",
    *,
    steps: int,
    out: str | Path,
    batch: int = 8,
    length: int = 256,
    seed: int = 0,
    backend: str = "inductor",
    resume: bool = False,
    begin: str | Path | None = None,
    names: Names | None = None,
    dims: Mapping[str, int] | None = None,
    params: Mapping[str, float | str] | None = None,
    log_every: int = 10,
    eval_every: int = 100,
    eval_bytes: int = LIMIT,
    save_every: int = 100,
    threads: int | None = None,
    tensorboard: bool = False,
    progress: Progress | None = None,
    library: Library | None = None,
) -> TrainResult:
    """Train a spec on a text and leave a run in the folder `out`.

    batch, length: rows a step and bytes a row. resume: go on with the run in `out` up to `steps`; bit for bit the same as
    not having stopped. begin: a run of another spec with the same parameters, with whose latest weights and states of rules this
    one begins; names: what each learner of these rules goes on as (`nlc.runtime.continuity`). eval_every, save_every: 0 for
    only at the end. threads: of torch, by default as they are; recorded, and a resumed run takes the recorded number.
    tensorboard: write the logged records to `out`/tensorboard too.
    Ctrl-C saves a checkpoint after the step that runs and returns; a second one stops at once.
    Raises DataError for texts, folders, checkpoints (NLC71x, NLC72x) and a loss that is not finite (NLC730).
    """
    _check_numbers(steps=steps, batch=batch, length=length, log_every=log_every)
    if backend not in TRAINING:
        raise UsageError(f"`{backend}` cannot train; backends: {', '.join(TRAINING)}")
    if resume and begin is not None:
        raise UsageError("a run that goes on does not begin with another: give `resume` or `begin`")
    run = Path(out)
    if tensorboard:
        require("tensorboard")
    source = run_folder.open_source(spec, dims, params, library)
    model = byte_model(source.graph)
    corpus = load_text(text)
    corpus.check(length, model.vocabulary)
    settings = Settings(batch, length, seed, backend, threads or default_threads())
    saved, notes = None, list[str]()
    if resume:
        saved, settings, notes = _saved(run, source, corpus, settings, threads)
    else:
        run_folder.check_new(run)
    with deterministic(settings.threads):
        compiled = compile_spec(source.spec, dims, params, backend, seed=seed, library=source.library)
        notes += unreached(compiled.stages[0].graph, settings.length, steps)
        given = _begun_with(Path(begin), compiled, names or {}) if begin is not None else None
        if not resume:
            about = {"settings": asdict(settings), "deterministic": True, "text": _about(corpus), "versions": run_folder.versions()}
            run_folder.begin(run, source, about)
        trainer = _Trainer(run, source, corpus, settings, model, compiled, progress or (lambda record: None), eval_bytes)
        if given is not None:
            trainer.take(*given)
        trainer.start(saved)
        with boards.writing(run, trainer.step) if tensorboard else contextlib.nullcontext(lambda record: None) as trainer.log:
            interrupted = trainer.train(steps, log_every, eval_every, save_every)
    return TrainResult(run, trainer.step, interrupted, trainer.metrics, compiled, source, corpus, settings, notes)


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise UsageError(f"`{name}` is {value}; at least 1 is needed")


def _about(corpus: Corpus) -> dict[str, Any]:
    return {"name": corpus.name, "digest": corpus.digest, "bytes": len(corpus.train_N) + len(corpus.validation_N)}


def _saved(run: Path, source: Source, corpus: Corpus, settings: Settings, threads: int | None) -> tuple[Checkpoint, Settings, list[str]]:
    """The checkpoint to go on from, the settings of the run, and what may keep the bits from being equal."""
    config = run_folder.read_config(run)
    saved = checkpoint.load(run, source.meaning)
    if "adapted" in config:
        help = "begin a run with its weights: `nlc train SPEC -o NEW --from RUN`"
        raise DataError(
            [codes.OtherSettings(f"the run `{run}` was adapted from other weights; it has no training to go on with", NOWHERE, help)]
        )
    recorded, given = config["settings"], asdict(settings)
    if threads is None:
        given["threads"] = recorded.get("threads")
    text: Mapping[str, Any] = config["text"] if isinstance(config.get("text"), dict) else {}
    different = [f"{name} {recorded.get(name)}, now {value}" for name, value in given.items() if recorded.get(name) != value]
    if text.get("digest") != corpus.digest:
        different.append(f"text `{text.get('name')}`, now `{corpus.name}` with other bytes")
    if different:
        help = "give the settings of the run (its config.json), or start a new one"
        raise DataError([codes.OtherSettings(f"the run `{run}` began with {'; '.join(different)}", NOWHERE, help)])
    now = run_folder.versions()
    notes = [f"the run used {name} {old}, this is {now[name]}" for name, old in (saved.versions or {}).items() if now.get(name) != old]
    return saved, Settings(**given), notes


def _begun_with(run: Path, compiled: CompiledSpec, names: Names) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The latest weights and states of a run of another spec. Raises DataError (NLC72x, NLC732)."""
    saved = checkpoint.load(run)
    checkpoint.check_names(saved, dict(compiled.named_parameters()), saved.optimizer, run)
    return saved.parameters, of_model(compiled.graph, saved.optimizer, compiled.initial_optimizer(), names)


def unreached(graph: LevelGraph, tokens: int, steps: int) -> list[str]:
    """What learns nothing in so many steps with rows of so many tokens, since its period is longer."""
    limits = {"token": (tokens, f"a row has {tokens}"), "step": (steps, f"the run has {steps}")}
    found: dict[Clock, dict[str, None]] = {}
    for learner in graph.learners.values():
        clock = effective_clock(graph, learner) if learner.writes and (learner.host is None or learner.like_weights) else None
        if clock is not None and clock.unit in limits and clock.period > limits[clock.unit][0]:
            found.setdefault(clock, {})[learner.base] = None
    return [f"never updated, since {limits[clock.unit][1]}: every {clock}, {', '.join(learners)}" for clock, learners in found.items()]


class _Trainer:
    def __init__(
        self,
        run: Path,
        source: Source,
        corpus: Corpus,
        settings: Settings,
        model: ByteModel,
        compiled: CompiledSpec,
        progress: Progress,
        eval_bytes: int,
    ) -> None:
        self.run, self.source, self.corpus, self.settings, self.model = run, source, corpus, settings, model
        self.compiled, self.progress, self.eval_bytes = compiled, progress, eval_bytes
        self.parameters: dict[str, Tensor] = dict(compiled.named_parameters())
        self.optimizer: dict[str, Tensor] = compiled.initial_optimizer()
        self.step, self.saved_at = 0, -1
        self.seconds = 0.0
        self.metrics: list[Record] = []
        self.log: Progress = lambda record: None

    def start(self, saved: Checkpoint | None) -> None:
        """Take over a checkpoint, or write the first one."""
        if saved is None:
            self.save()
            return
        checkpoint.check_names(saved, self.parameters, self.optimizer, self.run)
        self.take(saved.parameters, saved.optimizer)
        self.step, self.saved_at, self.seconds = saved.step, saved.step, saved.seconds
        self.metrics = run_folder.rewind(self.run, self.step)

    def take(self, parameters: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Set the weights and the states of the outer levels."""
        with torch.no_grad():
            for name, x in self.parameters.items():
                x.copy_(parameters[name])
            for name, x in self.optimizer.items():
                x.copy_(optimizer[name])

    def train(self, steps: int, log_every: int, eval_every: int, save_every: int) -> bool:
        """Make steps up to `steps`; True if Ctrl-C stopped them."""
        with _interrupts() as interrupted:
            while self.step < steps and not interrupted.is_set():
                record = self.make_step()
                last = self.step == steps
                if last or _due(self.step, eval_every):
                    record["validation_bits_per_byte"] = self.validate()
                if last or _due(self.step, log_every) or "validation_bits_per_byte" in record:
                    self.metrics.append(record)
                    run_folder.append(self.run, record)
                    self.log(record)
                if _due(self.step, save_every):
                    self.save()
                self.progress(record)
            self.save()
            return self.step < steps

    def make_step(self) -> Record:
        began = time.perf_counter()
        batch = self.corpus.batch(self.settings.seed, self.step, self.settings.batch, self.settings.length)
        loss, self.optimizer = self.compiled.train_step(self.model.inputs(batch), self.optimizer)
        nats = float(loss)
        seconds = time.perf_counter() - began
        self.step += 1
        self.seconds += seconds
        if not math.isfinite(nats):
            raise self._not_finite(f"the loss of step {self.step} is {nats}")
        bits = nats / math.log(2)
        rate = batch["tokens"].numel() / seconds
        return {
            "step": self.step,
            "loss": nats,
            "bits_per_byte": bits,
            "tokens_per_second": round(rate, 1),
            "seconds": round(self.seconds, 3),
        }

    def validate(self) -> float:
        return bits_per_byte(self.compiled, self.corpus.validation_N, self.settings.batch, self.settings.length, self.eval_bytes)

    def save(self) -> None:
        if self.saved_at == self.step:
            return
        broken = [name for name, x in {**self.parameters, **self.optimizer}.items() if not torch.isfinite(x).all()]
        if broken:
            raise self._not_finite(f"after step {self.step} `{broken[0]}` is not finite")
        settings = asdict(self.settings)
        state = Checkpoint(self.step, self.source.meaning, self.parameters, self.optimizer, self.seconds, settings, run_folder.versions())
        checkpoint.save(self.run, state)
        self.saved_at = self.step

    def _not_finite(self, what: str) -> DataError:
        help = f"the checkpoint of step {max(self.saved_at, 0)} is kept; lower the learning rate, or clip the gradient"
        return DataError([codes.LossNotFinite(what, NOWHERE, help)])


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one stops at once, as always.

    A step changes weights in place, so it must not be cut in the middle. Only the main thread can listen.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
