#!/usr/bin/env bash
# The whole method on 1,437 handwritten digits: a table and a picture in
# runs/quickstart.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
python -m launch.quickstart "$@"
