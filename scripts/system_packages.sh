#!/usr/bin/env bash
# Install the system packages that setup.sh needs, naming them first; do nothing where all are
# there. Knows Debian and Ubuntu; elsewhere it names them and leaves.
set -euo pipefail

missing=()
need() { # need PACKAGE COMMAND...: PACKAGE is missing unless COMMAND succeeds
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

need g++ g++ --version
need cmake cmake --version
need make make --version
need python3 python3 --version
need python3-venv python3 -c 'import ensurepip, venv'
need python3-dev python3 -c \
    'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))'

[ ${#missing[@]} -eq 0 ] && exit 0

echo "setup: system packages to install: ${missing[*]}" >&2
if ! command -v apt-get >/dev/null; then
    echo "setup: no apt-get here. Install what these are called on this system, then again." >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup: not root and no sudo. As root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
