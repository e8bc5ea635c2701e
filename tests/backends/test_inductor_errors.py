"""What Inductor says when it fails."""

from typing import Any

import pytest
import torch

import nlc
from nlc.diagnostics import BackendError

DIMS = {"H": 1, "K": 4, "V": 4}


def test_a_compiler_that_is_missing_is_a_backend_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    compiled: Any = nlc.compile("ops/linear_attention", DIMS, backend="inductor")
    x = torch.ones(1, 3, 1, 4)

    with pytest.raises(BackendError) as error:
        compiled({"q": x, "k": x, "v": x})

    assert error.value.diagnostics[0].code == "NLC704"
    assert error.value.exit_code == 3
