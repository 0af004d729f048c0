#!/bin/bash
# Flux: edit down to the line, then `flux batch flux.sh`. To save and stop early: flux job kill -s USR1 JOBID
# flux: --job-name=train
# flux: --nodes=2
# flux: --nslots=8
# flux: --cores-per-slot=1
# flux: --time-limit=3600s
# flux: # --bank=NAME
# flux: # --queue=NAME
# flux: --output={{name}}-{{id}}.out
# flux: --signal=USR1@120s
NODES=2
RANKS=8
CORES_PER_RANK=1
PMI=(-o pmi=pmix)  # Open MPI 5 needs it and the plugin flux-pmix; for MPICH: PMI=()
SETUP=""  # shell commands that the job needs first, such as "module load openmpi" or "source .venv/bin/activate"
DIRECTORY=$PWD
PYTHON=(python)  # its words, such as (apptainer exec image.sif python)
COMMAND=(train.py)
# ----------------------------------------------------------------------------------------------------------------

[[ -z $SETUP ]] || eval "$SETUP" || { code=$?; echo "the setup failed with code $code: $SETUP" >&2; exit "$code"; }
cd "$DIRECTORY" || exit
LAUNCH=(flux run --nodes="$NODES" --ntasks="$RANKS" --cores-per-task="$CORES_PER_RANK" "${PMI[@]}" "${PYTHON[@]}")

# Before the time is up Flux sends SIGUSR1 to the ranks itself, and since 0.73 to this shell too, which must survive
# it. The ranks save and end with code 75; submitted again, the job goes on from there.
"${LAUNCH[@]}" "${COMMAND[@]}" &
job=$!
trap 'warned=yes' USR1
while warned=; wait "$job"; code=$?; [[ $warned ]]; do :; done
exit "$code"
