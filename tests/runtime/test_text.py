"""Byte corpora: reading, splitting, batches that depend only on (seed, step)."""

from pathlib import Path

import pytest
import torch

from nlc.diagnostics import DataError
from nlc.runtime.random import integer, uniform
from nlc.runtime.text import corpus_of, load_text, streams

COUNTING = bytes(range(200)) * 5


def _code(error: pytest.ExceptionInfo[DataError]) -> str:
    (diagnostic,) = error.value.diagnostics
    assert error.value.exit_code == 4
    assert diagnostic.message
    return diagnostic.code


def test_the_builtin_text_is_english_and_always_the_same() -> None:
    first, second = load_text("builtin"), load_text("builtin")

    assert first.digest == second.digest
    assert len(first.train_N) > 300_000
    assert b"The " in bytes(first.train_N.tolist())


def test_the_last_tenth_is_for_validation() -> None:
    corpus = corpus_of(COUNTING, "counting")

    assert bytes(corpus.train_N.tolist()) + bytes(corpus.validation_N.tolist()) == COUNTING
    assert len(corpus.validation_N) == 100


def test_a_target_is_the_byte_after_its_token_and_no_label_is_lost() -> None:
    batch = corpus_of(COUNTING, "counting").batch(seed=0, step=3, rows=4, length=16)

    assert batch["tokens"].shape == batch["targets"].shape == (4, 16)
    assert torch.equal(batch["targets"][:, :-1], batch["tokens"][:, 1:])
    assert torch.equal(batch["targets"], (batch["tokens"] + 1) % 200)


def test_a_batch_depends_on_seed_and_step_only() -> None:
    corpus = corpus_of(COUNTING, "counting")
    tokens = corpus.batch(5, 7, 4, 16)["tokens"]
    corpus.batch(5, 8, 4, 16)

    assert torch.equal(tokens, corpus.batch(5, 7, 4, 16)["tokens"])
    assert not torch.equal(tokens, corpus.batch(5, 8, 4, 16)["tokens"])
    assert not torch.equal(tokens, corpus.batch(6, 7, 4, 16)["tokens"])


def test_every_place_of_the_text_is_drawn() -> None:
    drawn = [integer(7, 0, step, row) for step in range(100) for row in range(7)]

    assert {drawn.count(i) > 60 for i in range(7)} == {True}
    assert all(0 <= uniform(1, i) < 1 for i in range(100))
    assert abs(sum(uniform(1, i) for i in range(1000)) / 1000 - 0.5) < 0.05


def test_streams_follow_each_other_and_cover_the_text() -> None:
    text = torch.arange(100, dtype=torch.uint8)

    parts = streams(text, rows=2, length=8, limit=1000)

    joined = torch.cat([part["tokens"] for part in parts], 1)
    assert joined.tolist() == [list(range(48)), list(range(48, 96))]
    assert torch.equal(torch.cat([part["targets"] for part in parts], 1), joined + 1)
    assert len(streams(text, rows=2, length=8, limit=40)) == 2


def test_a_file_need_not_be_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)

    assert 0xE9 in load_text(tmp_path / "latin.txt").train_N.tolist()


@pytest.mark.parametrize(("content", "code"), [(None, "NLC710"), ("folder", "NLC710"), (b"", "NLC711")])
def test_a_text_that_cannot_be_read(tmp_path: Path, content: bytes | str | None, code: str) -> None:
    path = tmp_path / "text"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)

    with pytest.raises(DataError) as error:
        load_text(path)

    assert _code(error) == code


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(DataError) as error:
        load_text("a\0b")

    assert _code(error) == "NLC710"


@pytest.mark.parametrize(("length", "vocabulary", "code"), [(100, 256, "NLC711"), (16, 128, "NLC712")])
def test_a_text_that_does_not_fit(length: int, vocabulary: int, code: str) -> None:
    with pytest.raises(DataError) as error:
        corpus_of(COUNTING, "counting").check(length, vocabulary)

    assert _code(error) == code
