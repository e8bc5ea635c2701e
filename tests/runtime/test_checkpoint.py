"""Checkpoints: whole or absent, and honest about damage."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nlc.diagnostics import DataError
from nlc.runtime import checkpoint
from nlc.runtime.checkpoint import FOLDER, LATEST, META, TENSORS, Checkpoint


def _checkpoint(step: int) -> Checkpoint:
    parameters = {"h.0.W": torch.arange(6.0).view(2, 3) + step}
    return Checkpoint(step, "abc", parameters, {"step": torch.tensor(step), "w.m.h.0.W": torch.ones(2, 3)}, 1.5, {"seed": 0}, {"nlc": "0"})


def _newest(run: Path) -> Path:
    return run / FOLDER / checkpoint.latest(run)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = _checkpoint(7)
    checkpoint.save(tmp_path, saved)

    loaded = checkpoint.load(tmp_path, "abc")

    assert (loaded.step, loaded.spec, loaded.seconds, loaded.settings, loaded.versions) == (7, "abc", 1.5, {"seed": 0}, {"nlc": "0"})
    assert torch.equal(loaded.parameters["h.0.W"], saved.parameters["h.0.W"])
    assert loaded.optimizer.keys() == saved.optimizer.keys()


def test_the_newest_is_loaded_and_few_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, _checkpoint(step))

    assert checkpoint.load(tmp_path).step == 4
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["00000003", "00000004"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [LATEST, FOLDER]


def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, _checkpoint(1))

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(checkpoint, "_write_through", full)
    with pytest.raises(DataError) as error:
        checkpoint.save(tmp_path, _checkpoint(2))

    assert error.value.diagnostics[0].code == "NLC801"
    assert checkpoint.load(tmp_path).step == 1
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["00000001"]


def _cut(run: Path) -> None:
    path = _newest(run) / TENSORS
    path.write_bytes(path.read_bytes()[:-5])


def _flip(run: Path) -> None:
    path = _newest(run) / TENSORS
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _no_json(run: Path) -> None:
    (_newest(run) / META).write_text('{"format": "nlc-che')


def _deep_json(run: Path) -> None:
    (_newest(run) / META).write_text("[" * 100_000)


def _without_step(run: Path) -> None:
    path = _newest(run) / META
    meta = json.loads(path.read_text())
    del meta["step"]
    path.write_text(json.dumps(meta))


def _no_tensors(run: Path) -> None:
    (_newest(run) / TENSORS).unlink()


def _no_folder(run: Path) -> None:
    (run / LATEST).write_text("00000099\n")


def _elsewhere(run: Path) -> None:
    (run / LATEST).write_text("../../secret\n")


def _foreign(run: Path) -> None:
    (_newest(run) / META).write_text('{"step": 3}')
    save_file({"x": torch.zeros(1)}, _newest(run) / TENSORS)


def _newer(run: Path) -> None:
    path = _newest(run) / META
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))


def _no_latest(run: Path) -> None:
    (run / LATEST).unlink()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        *((damage, "NLC722") for damage in (_cut, _flip, _no_json, _deep_json, _without_step, _no_tensors, _no_folder, _elsewhere)),
        *((damage, "NLC723") for damage in (_foreign, _newer)),
        (_no_latest, "NLC720"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], code: str) -> None:
    checkpoint.save(tmp_path, _checkpoint(3))
    damage(tmp_path)

    with pytest.raises(DataError) as error:
        checkpoint.load(tmp_path)

    (diagnostic,) = error.value.diagnostics
    assert (diagnostic.code, error.value.exit_code) == (code, 4)
    assert diagnostic.help


def test_another_spec_is_named(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, _checkpoint(3))

    with pytest.raises(DataError) as error:
        checkpoint.load(tmp_path, "another")

    assert error.value.diagnostics[0].code == "NLC724"


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    saved = _checkpoint(3)
    wanted = {"h.0.W": torch.zeros(2, 4)}

    with pytest.raises(DataError) as error:
        checkpoint.check_names(saved, wanted, saved.optimizer, tmp_path)

    assert "`h.0.W` of [2, 3]" in error.value.diagnostics[0].message
