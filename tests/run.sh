#!/usr/bin/env bash
# Makes a virtual environment, installs emprior and its tools into it and runs the tests, one process a core; see README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${EMPRIOR_VENV:-.venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --editable '.[dev]'
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$venv/bin/python" -m pytest --numprocesses auto --dist worksteal "$@"
