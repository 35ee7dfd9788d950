# Sourced by the scripts for many machines: how they take the arguments of
# `python -m main`, say what is wrong, and do or only print what they would do.
# shellcheck shell=bash

dry_run=""
training=(-m main) # what Python is given, on every machine
config="" workdir=""

# Ends with one sentence and status 2.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Prints the comment at the top of a script, without its first line.
help() {
  sed -n -e 1d -e '/^#SBATCH/q' -e '/^[^#]/q' -e 's/^# \{0,1\}//p' "$1"
}

# Prints a command as a shell would have to be given it.
quoted() {
  local separator="" word
  for word in "$@"; do
    printf '%s' "$separator"
    case $word in
      "" | *[!A-Za-z0-9_@%+=:,./-]*)
        printf "'%s'" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")"
        ;;
      *) printf '%s' "$word" ;;
    esac
    separator=" "
  done
}

# Runs a command, or only prints it.
perform() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
    echo
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@"
  fi
}

# Says something; a comment where the commands are only printed.
say() {
  if [ -n "$dry_run" ]; then
    printf '# %s\n' "$*"
  else
    printf '%s\n' "$*" >&2
  fi
}

# Checks an option's value: the option, its value, a pattern (an extended
# regular expression for all of it), and what it is to look like.
check() {
  if [ -z "$2" ]; then
    fail "$1 is missing: $4"
  fi
  if ! [[ $2 =~ ^($3)$ ]]; then
    fail "$1=$2 cannot be: possible is $4"
  fi
}

# Takes an option of `python -m main`, or fails; the rest of the arguments are
# the options that are possible beside it.
take() {
  local option=$1
  shift
  case $option in
    *[[:cntrl:]]*) fail "there is a control character in $(printf %q "$option")" ;;
    --config=*) config=${option#*=} ;;
    --workdir=*) workdir=${option#*=} ;;
    --config.?*=*) ;;
    *) fail "unknown argument $option: possible are $*, --config=RECIPE," \
      "--workdir=FOLDER and --config.KEY=VALUE" ;;
  esac
  training+=("$option")
}

# Checks what is to be trained: the folder in which workdirs have to lie, which
# all machines see; "" for any.
check_training() {
  if [ -z "$config" ]; then
    fail "--config is missing: for instance" \
      "--config=configs/pretrain.py:vit,cifar10"
  fi
  if [ ! -f "${config%%:*}" ]; then
    fail "there is no recipe ${config%%:*}: possible are configs/pretrain.py" \
      "and configs/finetune.py"
  fi
  if [ -z "$workdir" ]; then
    fail "--workdir is missing: the run's folder${1:+, in $1}"
  fi
  if [ -n "$1" ] && [[ $workdir != "$1"/?* || $workdir == *..* ]]; then
    fail "--workdir=$workdir is not in $1, the folder that all hosts see:" \
      "possible is $1/runs/A"
  fi
}
