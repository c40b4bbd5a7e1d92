#!/bin/sh
# What must be there before hako's own Python can run: distribution packages and the checkout's virtual environment.
# Usage: setup.sh GROUP...     groups of packages.txt; with `test` among them the environment gets the test tools too.
# A stamp in .venv, named after pyproject.toml's hash and Python's version, makes the second run a matter of milliseconds.
set -eu

cd "$(dirname "$0")/../.."
python=/usr/bin/python3
extra=run
for group in "$@"; do
    [ "$group" = test ] && extra=dev
done

# Run a step and say how long it took, if that was longer than a blink.
step() {
    name=$1
    shift
    begin=$(date +%s%N)
    "$@"
    took=$((($(date +%s%N) - begin) / 100000000))
    [ "$took" -lt 5 ] || printf '%-28s %6s s\n' "$name" "$((took / 10)).$((took % 10))"
}

environment() {
    key=$($python -IS -c 'import sys, hashlib; print(hashlib.sha256(open("pyproject.toml", "rb").read() + sys.version.encode()).hexdigest()[:12])')
    [ -e ".venv/.ready-dev-$key" ] && return
    [ -e ".venv/.ready-$extra-$key" ] && return
    case "$(.venv/bin/python -IS -c 'import sys; print(sys.version)' 2>/dev/null)" in
    "$($python -IS -c 'import sys; print(sys.version)')") ;;
    *) rm -rf .venv; $python -m venv .venv ;;
    esac
    what=.
    [ $extra = dev ] && what='.[dev]'
    echo "making the Python environment"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$what"
    touch ".venv/.ready-$extra-$key"
}

step "distribution packages" sh shim/install/packages.sh "$@"
step "Python environment" environment
