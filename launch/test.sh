#!/usr/bin/env bash
# Checks the style and runs all tests but those that CONTRIBUTING.md names.
set -euo pipefail
EXTRAS="[test]"
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
ruff check .
ruff format --check .
export JAX_PLATFORMS=cpu
# A file's fixtures once, and not the files of few but long tests last.
python -m pytest -n 3 --dist=loadfile --no-loadscope-reorder "$@"
