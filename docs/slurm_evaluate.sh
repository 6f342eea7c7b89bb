#!/usr/bin/env bash
# SLURM: evaluate in four parts, one GPU each, at the same time or as GPUs become free.
#
#   sbatch docs/slurm_evaluate.sh --model_path M --dataset_path D --split test_clean --output_dir /scratch/me/eval
#
# The part that ends last writes results.json. A part that failed or met its time limit: submit all again with the same
# arguments. What is answered is not asked again.
#SBATCH --job-name=pmcvqa-eval
#SBATCH --array=1-4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

source .venv/bin/activate
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    python sft/evaluate.py "$@" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
