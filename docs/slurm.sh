#!/usr/bin/env bash
# SLURM: train on two machines with eight GPUs each, save before the time limit, and continue from there.
#
#   sbatch docs/slurm.sh recipes/pmcvqa_ddp.yaml --global_batch_size 16 --output_dir /scratch/me/run1
#
# At the time limit it saves and ends with status 0. Submit it again with the same arguments until final_model/ is there:
# `auto` continues from the latest complete checkpoint.
#SBATCH --job-name=pmcvqa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

source .venv/bin/activate
MAIN=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN GPUS=8

# SLURM sends SIGUSR1 to all processes of the step five minutes before the end. The training processes save and leave;
# the launcher, which does not handle this signal, must ignore it (trap '' is inherited through exec).
srun --kill-on-bad-exit=1 bash -c '
    trap "" USR1
    exec accelerate launch --config_file accelerate_configs/multi_node.yaml \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$MAIN" sft/run.py "$@" --resume_from_checkpoint auto
' bash "$@"
