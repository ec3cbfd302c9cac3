#!/usr/bin/env bash
# Makes .venv-trl, the environment of the benchmark's TRL arms: benchmarks/trl_env.sh [DIRECTORY].
# Beside the project's own environment, because TRL is nobody's dependency here.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv-trl}
pins="-r benchmarks/trl/requirements.txt -c constraints.txt"

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet uv 2>/dev/null || true
if [ -x "$venv/bin/uv" ]; then
    # without a folder of wheels and without a CUDA driver this takes torch's CPU build
    if [ -n "${PIP_FIND_LINKS:-}" ]; then
        source="--find-links $PIP_FIND_LINKS"
    else
        source="--torch-backend=${TORCH_BACKEND:-auto}"
    fi
    "$venv/bin/uv" pip install $source --python "$venv/bin/python" $pins
else
    "$venv/bin/python" -m pip install $pins
fi
"$venv/bin/python" -c 'import torch, trl; print("trl", trl.__version__, "torch", torch.__version__)'
