"""What Inductor says when it fails."""

from typing import Any

import pytest
import torch

import nlc
from nlc.diagnostics import BackendError

DIMS = {"H": 1, "K": 4, "V": 4}


@pytest.mark.inductor
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled:UserWarning")  # what it says when caches are off
def test_a_compiler_that_is_missing_is_a_backend_error() -> None:
    from torch._inductor import config

    compiled: Any = nlc.compile("ops/linear_attention", DIMS, backend="inductor")
    x = torch.ones(1, 3, 1, 4)

    # `patch` of the config restores it; setting the attribute would break the compiler for the rest of the process
    with config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}), pytest.raises(BackendError) as error:
        compiled({"q": x, "k": x, "v": x})

    assert error.value.diagnostics[0].code == "NLC704"
    assert error.value.exit_code == 3
