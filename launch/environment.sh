# shellcheck shell=bash
# Sourced by the other scripts: makes .venv, installs the project into it where
# that has not been done yet, and puts it on the PATH. EXTRAS, such as "[test]",
# names what to install beside the project itself.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv || exit 1
fi
stamp=".venv/installed${EXTRAS:-}"
if [ ! -e "$stamp" ] || [ setup.py -nt "$stamp" ]; then
  echo "Installing into .venv (a few minutes the first time)"
  # Without the byte code of thousands of files, most of which are never read.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --no-compile --editable ".${EXTRAS:-}" || exit 1
  touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
