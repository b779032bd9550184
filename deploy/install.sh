# Sourced: makes .venv and installs llmos with the extras named by $1, unless that is already so. Shows how far it is.
[ -n "${BASH_VERSION:-}" ] || { echo "run this with bash" >&2; exit 2; }

llmos_install() {
  local extras=$1 python stamp
  python=${PYTHON:-}
  if [ -z "$python" ]; then
    for candidate in python3.13 python3.12 python3.11 python3; do
      if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
      fi
    done
  fi
  [ -n "$python" ] || { echo "llmos needs Python 3.11 or newer; install it, or set PYTHON to one" >&2; return 1; }
  [ -x .venv/bin/python ] || "$python" -m venv .venv || { echo "can't make .venv; on Debian: apt install python3-venv" >&2; return 1; }
  stamp="$extras $(cksum <pyproject.toml) $(.venv/bin/python -V)"
  if [ "$(cat .venv/.llmos-installed 2>/dev/null)" != "$stamp" ]; then
    echo "Installing llmos[$extras] into .venv (once; some minutes)…"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" || return 1
    echo "$stamp" >.venv/.llmos-installed
  fi
}
llmos_install "$1" || exit 1
