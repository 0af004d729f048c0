#!/bin/bash
# Grid Engine: edit down to the line, then `qsub sge.sh`. To save and stop early: qdel JOBID
# How many slots a host gives is the parallel environment's rule: `qconf -spl` lists them, `qconf -sp NAME` shows one.
#$ -N train
#$ -pe mpi 8
#$ -l h_rt=1:00:00
#$ -l s_rt=0:58:00
##$ -l h_vmem=4G
##$ -P NAME
##$ -q NAME
#$ -S /bin/bash
#$ -cwd
#$ -j y
##$ -o FILE
#$ -notify
CORES_PER_RANK=1
SETUP=""  # shell commands that the job needs first, such as "module load openmpi" or "source .venv/bin/activate"
DIRECTORY=$PWD
PYTHON=(python)  # its words, such as (apptainer exec image.sif python)
RUN_OPTIONS=()  # of sorix-dist run, such as (--log-dir logs --checkpoint saved --max-restarts 3)
COMMAND=(train.py)
# ----------------------------------------------------------------------------------------------------------------

[[ -z $SETUP ]] || eval "$SETUP" || { code=$?; echo "the setup failed with code $code: $SETUP" >&2; exit "$code"; }
cd "$DIRECTORY" || exit
LAUNCH=("${PYTHON[@]}" -P -m sorix_dist run "${RUN_OPTIONS[@]}" -n "$((NSLOTS / CORES_PER_RANK))")
# An Open MPI that was built without Grid Engine, as from pip, finds its hosts here.
awk -v cores="$CORES_PER_RANK" '{ print $1 " slots=" int($2 / cores) }' "$PE_HOSTFILE" > "$TMPDIR/hosts"
export PRTE_MCA_prte_default_hostfile=${PRTE_MCA_prte_default_hostfile:-$TMPDIR/hosts}

# Grid Engine warns by SIGUSR1 (s_rt is over) and SIGUSR2 (qdel), and kills when the queue's `notify` time, usually
# a minute, has passed. The ranks hear of it as SIGUSR1, save, and end with code 75; submitted again, the job goes on
# from there.
warn() { warned=yes; kill -USR1 "$job"; }
set -m  # the launcher in a process group of its own: signals come to it through this shell
"${LAUNCH[@]}" "${COMMAND[@]}" &
job=$!
trap warn USR1 USR2 TERM
while warned=; wait "$job"; code=$?; [[ $warned ]]; do :; done
exit "$code"
