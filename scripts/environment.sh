#!/usr/bin/env bash
# Makes the environment: environment.sh DIRECTORY. Called by `make env` and by the Dockerfile, which
# sets CAHL_EXTRAS to nothing: an image needs no linters.
# uv installs in seconds what pip takes minutes for; without uv, pip does the same from the same pins.
set -euo pipefail
venv=$1
package="-e .${CAHL_EXTRAS-[dev]}"

fail() {
    echo "error: $1" >&2
    echo "  → $2" >&2
    exit 1
}

usable() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null
}

find_python() {
    for candidate in "${PYTHON:-}" python3.12 python3.11 python3 python; do
        if [ -n "$candidate" ] && usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

if [ -n "${PYTHON:-}" ] && ! usable "$PYTHON"; then
    fail "PYTHON=$PYTHON is not Python 3.11 or 3.12" "name another: make env PYTHON=python3.12"
fi
python=$(find_python) ||
    fail "no Python 3.11 or 3.12 found" "apt-get install python3 python3-venv, or make env PYTHON=/path/to/python"

# An environment whose interpreter is gone, or that another version made, is made anew.
if [ -d "$venv" ] && ! usable "$venv/bin/python"; then
    echo "$venv does not hold a working Python 3.11 or 3.12: making it anew"
    rm -rf "$venv"
fi
if [ ! -d "$venv" ]; then
    echo "environment: $venv ($("$python" --version))"
    log=$(mktemp)
    if ! "$python" -m venv "$venv" >"$log" 2>&1; then
        cat "$log" >&2
        rm -rf "$venv" "$log"
        fail "$python cannot make an environment" "apt-get install python3-venv (pip and ensurepip come with it)"
    fi
    rm -f "$log"
fi

uv_install() {
    "$venv/bin/python" -m pip install --quiet uv 2>/dev/null || return 1
    if [ -n "${PIP_FIND_LINKS:-}" ]; then
        "$venv/bin/uv" pip install --find-links "$PIP_FIND_LINKS" --python "$venv/bin/python" \
            $package -c constraints.txt
    else
        # without a CUDA driver this takes torch's CPU build, gigabytes smaller
        "$venv/bin/uv" pip install --torch-backend="${TORCH_BACKEND:-auto}" --python "$venv/bin/python" \
            $package -c constraints.txt
    fi
}

# uv does not read pip's configuration: a folder of wheels named there counts like the variable
if [ -z "${PIP_FIND_LINKS:-}" ]; then
    unset PIP_FIND_LINKS
    # `pip config get` of Debian's pip 23.0 does not find what its `list` shows
    folder=$("$venv/bin/python" -m pip config list 2>/dev/null |
        sed -n "s/^global\.find-links='\(.*\)'\$/\1/p" || true)
    if [ -n "$folder" ]; then
        export PIP_FIND_LINKS=$folder
    fi
fi
if ! uv_install; then
    echo "uv did not do it; installing with pip, which takes some minutes" >&2
    "$venv/bin/python" -m pip install $package -c constraints.txt ||
        fail "the packages could not be installed" "see pip's message above; behind a proxy or offline, set PIP_INDEX_URL or PIP_FIND_LINKS"
fi
