#!/usr/bin/env bash
# Makes a virtual environment, installs emprior into it and restores a photograph; see README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${EMPRIOR_VENV:-.venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --editable .
exec "$venv/bin/python" examples/inpainting_cifar10_posterior.py "$@"
