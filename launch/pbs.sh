#!/bin/bash
# PBS Pro and OpenPBS: edit down to the line, then `qsub pbs.sh`. To save and stop early: qsig -s USR1 JOBID
#PBS -N train
#PBS -l select=2:ncpus=4:mpiprocs=4:ompthreads=1
#PBS -l place=scatter
#PBS -l walltime=1:00:00
##PBS -A NAME
##PBS -q NAME
#PBS -j oe
##PBS -o FILE
WARN_AFTER=3480  # seconds: the walltime less two minutes, for PBS itself warns of its end only 10 s before
SETUP=""  # shell commands that the job needs first, such as "module load openmpi" or "source .venv/bin/activate"
DIRECTORY=$PBS_O_WORKDIR
PYTHON=(python)  # its words, such as (apptainer exec image.sif python)
RUN_OPTIONS=()  # of sorix-dist run, such as (--log-dir logs --checkpoint saved --max-restarts 3)
COMMAND=(train.py)
# ----------------------------------------------------------------------------------------------------------------

[[ -z $SETUP ]] || eval "$SETUP" || { code=$?; echo "the setup failed with code $code: $SETUP" >&2; exit "$code"; }
cd "$DIRECTORY" || exit
LAUNCH=("${PYTHON[@]}" -P -m sorix_dist run "${RUN_OPTIONS[@]}" -n "$(wc -l < "$PBS_NODEFILE")")  # a line for each rank: mpiprocs of every chunk
# An Open MPI that was built without PBS, as from pip, finds its hosts here; it reaches them by ssh.
export PRTE_MCA_prte_default_hostfile=${PRTE_MCA_prte_default_hostfile:-$PBS_NODEFILE}

# The ranks hear of the coming end as SIGUSR1 (mpirun would kill them half a second after a SIGTERM), save, and end
# with code 75; submitted again, the job goes on from there.
warn() { warned=yes; kill -USR1 "$job"; }
set -m  # the launcher in a process group of its own: signals come to it through this shell
"${LAUNCH[@]}" "${COMMAND[@]}" &
job=$!
trap warn USR1 TERM
{ sleep "$WARN_AFTER"; kill -USR1 $$; } &
timer=$!
while warned=; wait "$job"; code=$?; [[ $warned ]]; do :; done
kill -TERM -- "-$timer" 2> /dev/null
exit "$code"
