#!/bin/sh
#SBATCH --job-name=itrd-bench
#SBATCH --array=0-15
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=slurm-%A_%a.log
# The benchmark on a Slurm cluster: every task of the array is a runner of its own. Submit from the project's folder,
# which all nodes have to share:
#
#   sbatch scripts/slurm_array.sh --track protocol
#   sbatch --array=0-3 scripts/slurm_array.sh --methods itrd,none --seeds 0 --jobs 4
#
# Arguments are those of `itrd bench run`. Tasks share nothing but results/ (records and claims), zoo/ and runs/:
# none needs to know of the others, any may be preempted, cancelled or submitted again. The signal comes two minutes
# before the time limit; the runner then saves the state of its run, and the next task continues it.
set -eu
cd "${SLURM_SUBMIT_DIR:-.}"
"${ITRD:-itrd}" bench run "$@" &
runner=$!
trap 'kill -TERM "$runner"' TERM INT
# The first wait ends with the signal, the second one with the runner.
status=0
wait "$runner" || status=$?
if kill -0 "$runner" 2>/dev/null; then
    status=0
    wait "$runner" || status=$?
fi
case $status in 130 | 143) status=0 ;; esac # asked to stop, everything saved
exit "$status"
