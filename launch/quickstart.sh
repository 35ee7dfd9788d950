#!/usr/bin/env bash
# The whole method, on 1,437 handwritten digits or your own images: a table, a
# picture and a report in runs/quickstart.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
python -m vit_ssl_jax.quickstart "$@"
