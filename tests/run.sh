#!/usr/bin/env bash
# Every check of the project: formatting and lint, types, import rules, tests. Installs what they need into .venv.
#   bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/install.sh dev
export TESTCONTAINERS_RYUK_DISABLED=true ORT_DISABLE_TELEMETRY=1
step() { printf '\n== %s\n' "$*"; }
step ruff;          .venv/bin/ruff check . && .venv/bin/ruff format --check .
step mypy;          .venv/bin/mypy
step import-linter; .venv/bin/lint-imports
step pytest;        .venv/bin/python -m pytest "$@"
