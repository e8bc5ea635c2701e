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
