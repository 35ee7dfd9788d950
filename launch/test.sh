#!/usr/bin/env bash
# Checks the style and runs all tests but those that CONTRIBUTING.md names.
set -euo pipefail
EXTRAS="[test]"
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
ruff check .
ruff format --check .
export JAX_PLATFORMS=cpu
python -m pytest -n 3 --dist=loadfile "$@"  # a file's fixtures once
