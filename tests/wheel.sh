#!/usr/bin/env bash
# Builds the wheel, installs it and what it requires into an empty environment, and uses it far from the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
unset PYTHONPATH
export EMPRIOR_CACHE=$room/cache

# a copy, since a build/ folder of an earlier wheel would put files into this one that are no longer there
mkdir "$room/source"
cp -r emprior problems pretrained setup.cfg pyproject.toml README.md LICENSE "$room/source"
python3 -m venv "$room/venv"
bin=$room/venv/bin
"$bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$room/dist" "$room/source"
"$bin/python" -m pip install --quiet "$room"/dist/emprior-*.whl
"$bin/python" -m pip check

(cd problems && find . -name '*.yaml' | sort) > "$room/problems.given"
(cd pretrained && find . -name weights.safetensors -o -name card.yaml | sort) > "$room/pretrained.given"
mkdir "$room/elsewhere"
cd "$room/elsewhere"
for name in problems pretrained; do
    data=$("$bin/python" -c "from emprior import _paths; print(_paths.${name}_dir())")
    (cd "$data" && find . -name '*.yaml' ! -name train.yaml -o -name weights.safetensors | sort) > "$room/$name.installed"
    diff "$room/$name.given" "$room/$name.installed"
done
"$bin/emprior" doctor --batch 4
"$bin/emprior" solve --problem cifar10/inpainting --input skimage:chelsea --degrade --out restored
test -s restored/estimate.npy -a -s restored/figure.png
"$bin/emprior" report restored
grep -q '</html>' restored/report.html
