# Sourced by the launch scripts: parses and checks their options, which include
# those of `python -m main`, and runs commands or prints them (--dry-run).
# shellcheck shell=bash

script="" commands="" command="" # commands: those that the script has, if any
options=""                       # its options; "=" ends those with a value
config="" workdir="" dry_run=""
training=(-m main) # the arguments of Python, on every machine

# Ends with one sentence and status 2.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Prints the comment at the top of the script, without its first line.
help() {
  sed -n -e 1d -e '/^#SBATCH/q' -e '/^[^#]/q' -e 's/^# \{0,1\}//p' "$script"
  exit 0
}

# Sets `command`, and a variable for each option: --dry-run sets dry_run.
parse() {
  local option
  if [ -n "$commands" ]; then
    case ${1:---help} in --help | -h) help ;; esac
    if [[ " $commands " != *" $1 "* ]]; then
      fail "unknown command $1: possible are ${commands// /, }"
    fi
    # shellcheck disable=SC2034 # the script's
    command=$1
    shift
  fi
  for option in "$@"; do
    case $option in
      --help | -h) help ;;
      *[[:cntrl:]]*) fail "$(printf %q "$option") has a control character" ;;
      --config=*) config=${option#*=} training+=("$option") ;;
      --workdir=*) workdir=${option#*=} training+=("$option") ;;
      --config.?*=*) training+=("$option") ;;
      *) assign "$option" ;;
    esac
  done
}

assign() {
  local key=${1%%=*} value=1
  [[ $1 != *=* ]] || key="$key=" value=${1#*=}
  if ! [[ $key =~ ^--[a-z-]+=?$ && " $options --dry-run " == *" $key "* ]]; then
    fail "unknown argument $1: possible are ${options// /, }, --dry-run," \
      "--help, --config=RECIPE, --workdir=FOLDER and --config.KEY=VALUE"
  fi
  key=${key:2}
  key=${key%=}
  printf -v "${key//-/_}" %s "$value"
}

# Checks an option: its name, its value, a regular expression for the whole
# value, and what it may be.
check() {
  [ -n "$2" ] || fail "$1 is missing: $4"
  [[ $2 =~ ^($3)$ ]] || fail "$1=$2 cannot be: possible is $4"
}

# Checks that one of two options is given: what they name, and for each how it
# is written, and its value.
one_of() {
  local possible="possible is one of $2 and $4"
  if [ -n "$3" ] && [ -n "$5" ]; then
    fail "${2%%=*}=$3 and ${4%%=*}=$5 were both given: $possible"
  fi
  [ -n "$3$5" ] || fail "$1 is missing: $possible"
}

# Checks a bucket's name.
check_bucket_name() {
  check --bucket "$1" '[a-z0-9][a-z0-9._-]*[a-z0-9]' \
    "a bucket's name, without gs://"
}

# Checks the recipe and the workdir, which has to lie in the folder $1, if any.
check_training() {
  [ -n "$config" ] ||
    fail "--config is missing: for instance configs/pretrain.py:vit,cifar10"
  if [ ! -f "${config%%:*}" ]; then
    fail "there is no recipe ${config%%:*}: possible are configs/pretrain.py" \
      "and configs/finetune.py"
  fi
  [ -n "$workdir" ] || fail "--workdir is missing: the run's folder${1:+, in $1}"
  if [ -n "$1" ] && [[ $workdir != "$1"/?* || $workdir == *..* ]]; then
    fail "--workdir=$workdir is not in $1, the folder that all hosts share:" \
      "possible is $1/runs/A"
  fi
}

# Checks that a program is installed: its name and its site.
check_installed() {
  if [ -z "$dry_run" ] && ! command -v "$1" >/dev/null; then
    fail "$1 is not installed: see $2"
  fi
}

# Prints a command as one types it in a shell.
quoted() {
  local separator="" word
  for word in "$@"; do
    if [[ $word == *[!A-Za-z0-9_@%+=:,./-]* || -z $word ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    printf '%s%s' "$separator" "$word"
    separator=" "
  done
}

# Runs a command, or only prints it.
perform() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
    echo
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

# Says something; as a comment if commands are only printed.
say() {
  if [ -n "$dry_run" ]; then echo "# $*"; else echo "$*" >&2; fi
}
