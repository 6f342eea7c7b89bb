#!/usr/bin/env bash
# SLURM: train on two machines with eight GPUs each, for as many time limits as it takes.
#
#   sbatch docs/slurm.sh recipes/pmcvqa_ddp.yaml --global_batch_size 16 --output_dir /scratch/me/run1
#
# Five minutes before the time limit the training saves a checkpoint, and the job is queued again; `auto` continues from
# there, until final_model/ is written. Cancelled or failed, it is not queued again: submit it with the same arguments.
# For other machines change the lines below, or give their words to sbatch, as docs/cluster.md shows.
#SBATCH --job-name=pmcvqa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail

source .venv/bin/activate
MAIN=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN PORT=$((20000 + SLURM_JOB_ID % 10000)) GPUS=${SLURM_GPUS_ON_NODE:-1}

# SLURM sends SIGUSR1 to this script, and this script sends it to the processes of the step. Those that train save and
# leave; the launchers, which do not handle this signal, must ignore it (trap '' is inherited through exec).
trap 'WARNED=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 bash -c '
    trap "" USR1
    exec python sft/multi_node.py --num_machines "$SLURM_NTASKS" --num_processes "$((SLURM_NTASKS * GPUS))" \
        --machine_rank "$SLURM_PROCID" --main_process_ip "$MAIN" --main_process_port "$PORT" \
        sft/run.py "$@" --resume_from_checkpoint auto
' bash "$@" &
wait $! || wait $! # the signal ends the first wait
[ -z "${WARNED:-}" ] || scontrol requeue "$SLURM_JOB_ID"
