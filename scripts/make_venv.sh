#!/usr/bin/env bash
# Make .venv and install nlc into it, editable, with the tools for development.
#
#   scripts/make_venv.sh [cpu|any|keep]
#
#   cpu    torch as constraints.txt names it; stops where that would bring CUDA packages (several gigabytes)
#   any    the same, whatever build of torch the package index gives
#   keep   the torch that $PYTHON already has; .venv sees it through the system's site-packages
#
# PYTHON names the interpreter. Called by the Makefile; running it again repairs an environment.
set -euo pipefail
cd "$(dirname "$0")/.."

torch_mode=${1:-cpu}
venv=.venv
stamp=$venv/.installed
minimum="Python 3.11 or 3.12, with the modules venv and ensurepip"
export PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-120}
export PIP_RETRIES=${PIP_RETRIES:-5}

fail() { printf 'make_venv: %s\n' "$*" >&2; exit 1; }

is_usable() { "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_usable "$PYTHON" || fail "PYTHON=$PYTHON is not $minimum"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.12 python3.11 python; do
        if is_usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no $minimum was found; name one: make test PYTHON=/path/to/python3.12"
}

# A download that breaks off is tried again (pip retries only its start); a plain no is final.
install() {
    local try log=$venv/pip.log
    for try in 1 2 3; do
        if "$venv/bin/python" -m pip install -qq "$@" 2>&1 | tee "$log" >&2; then
            return 0
        fi
        if [ "$try" = 3 ] || grep -qE 'No matching distribution|ResolutionImpossible|ConflictingDependencies' "$log"; then
            return 1
        fi
        echo "make_venv: pip failed, trying again ($try of 2)" >&2
        sleep $((try * 5))
    done
}

# For Linux on x86-64 the common index holds CUDA builds only, and a pin of the plain version would take one.
install_cpu_torch() {
    local pin
    pin=$(grep '^torch==' constraints.txt)
    if [ "$(uname -sm)" = "Linux x86_64" ]; then
        pin=$pin+cpu
    fi
    install -c constraints.txt "$pin" && return
    fail "pip found no $pin here. Choose one:
  make test PIP_EXTRA_INDEX_URL=URL   an index that has CPU builds (torch's install page names it)
  make test TORCH=any                 take any build from the index: CUDA builds bring several gigabytes
  make test TORCH=keep                use the torch that this Python already has"
}

# Where $PYTHON is itself a virtual environment, .venv sees the packages below it only through a path file.
share_torch() {
    local outer
    outer=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])') \
        || fail "TORCH=keep, but $python has no torch"
    "$venv/bin/python" -c 'import torch' 2>/dev/null && return
    echo "$outer" > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer-torch.pth"
}

case $torch_mode in cpu | any | keep) ;; *) fail "TORCH is cpu, any or keep, not '$torch_mode'" ;; esac
python=$(find_python)

# Another interpreter, another kind of torch or another place: start afresh.
identity="$PWD torch=$torch_mode $("$python" -c 'import sys; print(sys.version.split()[0])')"
if [ "$(cat "$venv/.identity" 2>/dev/null)" != "$identity" ]; then
    rm -rf "$venv"
    if [ "$torch_mode" = keep ]; then
        "$python" -m venv --system-site-packages "$venv"
    else
        "$python" -m venv "$venv"
    fi
    echo "$identity" > "$venv/.identity"
fi
rm -f "$stamp"

constraints=$venv/constraints.txt
case $torch_mode in
    cpu)
        cp constraints.txt "$constraints"
        install_cpu_torch
        ;;
    any)
        grep -v '^triton==' constraints.txt > "$constraints"      # a CUDA build of torch brings the Triton it was made for
        install -c "$constraints" torch || fail "pip could not install torch"
        ;;
    keep)
        # Unpinned: torch, what torch asks for, and what may have been installed beside it.
        grep -vE '^(torch|triton|numpy|networkx|sympy|mpmath|fsspec|filelock)==' constraints.txt > "$constraints"
        share_torch
        ;;
esac
install -c "$constraints" 'setuptools>=77' || fail "pip could not install setuptools"
install -c "$constraints" --no-build-isolation --editable '.[dev]' || fail "pip could not install nlc"
"$venv/bin/python" -c 'import torch; print("make_venv: torch", torch.__version__)' >&2
echo "$PWD torch=$torch_mode" > "$stamp"
