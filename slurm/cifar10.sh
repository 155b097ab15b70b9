#!/bin/bash
# A ResNet-20 on CIFAR-10: three seeds, a swarm of eight GPUs each.
#
#     sbatch slurm/cifar10.sh [--config.SECTION.KEY=VALUE ...]
#
# Run it from the top of the repository, in an active environment that has swarm-tf and its
# recipes, with the data prepared as configs/cifar10_resnet20.py says. Adapt nodes, GPUs and
# hours: flags given to sbatch (--ntasks=32, --time=12:00:00) override those below. With MPICH run
# SWARM_MPI=pmi2 sbatch ...; "srun -n 2 python -m swarm_tf doctor" shows which one fits.
#
# Two minutes before the time limit Slurm signals all ranks, which then write checkpoints, the mean
# model and the summary; the job requeues itself and goes on. So does a job that Slurm preempts or
# whose node has failed. After scancel, submit it again to go on, also with another --ntasks.

#SBATCH --job-name=cifar10
#SBATCH --array=0-2      # seeds
#SBATCH --ntasks=8       # ranks of a swarm, one GPU each
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

set -euo pipefail
seed=$SLURM_ARRAY_TASK_ID
# srun does not take the number of CPUs from sbatch by itself.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# Two minutes before the limit this script gets SIGUSR1, and srun passes it on to all ranks.
trap 'limit_is_near=1; kill -USR1 "$job"' USR1
srun --mpi="${SWARM_MPI:-pmix}" --kill-on-bad-exit=1 \
    python train.py --config=configs/cifar10_resnet20.py \
    --workdir="${SWARM_RUNS:-runs}/cifar10/seed-$seed" --config.seed="$seed" "$@" &
job=$! code=0
wait "$job" || code=$?
while kill -0 "$job" 2>/dev/null; do  # the signal interrupts wait
    code=0
    wait "$job" || code=$?
done
if [[ ${limit_is_near:-} ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
