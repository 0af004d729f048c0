#!/bin/bash
# No scheduler: edit down to the line, then `./local.sh`. To save and stop early: kill -TERM its process.
HOSTFILE=""  # such as hosts.example: machines that ssh reaches without a password; empty is this machine alone
RANKS=4
SETUP=""  # shell commands that the job needs first, such as "source .venv/bin/activate"
DIRECTORY=$PWD
PYTHON=(python)  # its words, such as (apptainer exec image.sif python)
RUN_OPTIONS=()  # of sorix-dist run, such as (--log-dir logs --checkpoint saved --max-restarts 3)
COMMAND=(train.py)
# ----------------------------------------------------------------------------------------------------------------

[[ -z $SETUP ]] || eval "$SETUP" || { code=$?; echo "the setup failed with code $code: $SETUP" >&2; exit "$code"; }
cd "$DIRECTORY" || exit
LAUNCH=("${PYTHON[@]}" -P -m sorix_dist run "${RUN_OPTIONS[@]}" -n "$RANKS" ${HOSTFILE:+--hostfile "$HOSTFILE"})

# The ranks hear of a coming end as SIGUSR1 (mpirun would kill them half a second after a SIGTERM), save, and end with
# code 75; started again, the job goes on from there. Ctrl-C ends it without saving.
pass() { passed=yes; kill -"$1" "$job"; }
set -m  # the launcher in a process group of its own: signals come to it through this shell
"${LAUNCH[@]}" "${COMMAND[@]}" < /dev/null &
job=$!
trap 'pass USR1' USR1 TERM
trap 'pass INT' INT
while passed=; wait "$job"; code=$?; [[ $passed ]]; do :; done
exit "$code"
