#!/usr/bin/env bash
# The environment of this repository: source it, or let it run one command.
#
#   . scripts/env.sh            for this shell
#   scripts/env.sh pytest -x    for this command
#
# What the caller has set stays: ROS_DOMAIN_ID, RMW_IMPLEMENTATION, a DDS profile of its own.
_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)
if [ ! -x "$_root/.venv/bin/python" ]; then
    echo "env: there is no .venv yet. Run: make setup" >&2
    return 1 2>/dev/null || exit 1
fi

_put_first() { # _put_first VARIABLE FOLDER: FOLDER at the front of VARIABLE, once
    case ":${!1:-}:" in
        *":$2:"*) ;;
        *) export "$1=$2${!1:+:${!1}}" ;;
    esac
}

export VIRTUAL_ENV="$_root/.venv"
_put_first PATH "$VIRTUAL_ENV/bin"
_put_first AMENT_PREFIX_PATH "$VIRTUAL_ENV"
_put_first LD_LIBRARY_PATH "$VIRTUAL_ENV/lib"
export RMW_IMPLEMENTATION="${RMW_IMPLEMENTATION:-rmw_fastrtps_cpp}"
# The default shared-memory segment loses best-effort images wholesale.
export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$_root/config/fastdds.xml}"
export FASTDDS_DEFAULT_PROFILES_FILE="${FASTDDS_DEFAULT_PROFILES_FILE:-$FASTRTPS_DEFAULT_PROFILES_FILE}"

unset _root
unset -f _put_first
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    exec "$@"
fi
