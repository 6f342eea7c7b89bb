"""Everything that can be refused before a model loads: recipe x launch x hardware x data, and what the run will take.

    python sft/preflight.py RECIPE [--config_file accelerate_configs/LAUNCH.yaml] [--gpu A100-80GB] [--key value ...]

Run alone, it needs neither a GPU nor the model's weights: the launch file tells how the run would be started, --gpu
on what (default: this machine). `sft/run.py` makes the same checks at every start.

Exit status: 0 every check passed, 2 the run is refused (one line says what, where and what to use instead).
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from sft.common import models
from sft.common.command import run
from sft.training import libraries
from sft.training.base_model import for_base_model
from sft.training.checkpoints import resume_point
from sft.training.checks import check_all, for_this_cpu, hardware_of
from sft.training.config import resolve
from sft.training.hardware import GPUS
from sft.training.launch import current_launch, read_launch_file
from sft.training.plan import check_checkpoints_fit, load_and_check_data, make_plan, print_plan

# What lets the libraries build the settings of another machine's GPUs here.
ANYWHERE = {
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "tf32": None,
    "bf16_full_eval": False,
    "fp16_full_eval": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--config_file", type=Path, help="launch file (default: as this command was launched)")
    parser.add_argument("--gpu", help=f"plan for GPUs of this kind instead of this machine: {', '.join(GPUS)}")
    parser.add_argument("--num_processes", type=int, help="processes, where the launch file says another number")
    args, overrides = parser.parse_known_args()

    launch = read_launch_file(args.config_file) if args.config_file else current_launch()
    if args.num_processes is not None:
        launch = dataclasses.replace(launch, processes=args.num_processes)
    settings = for_this_cpu(resolve([args.recipe, *overrides]).for_world_size(launch.processes), launch)
    hardware = hardware_of(settings, launch, args.gpu)
    check_all(settings, launch, hardware)
    models.check_model_folder(settings.model_name_or_path)
    settings = for_base_model(settings, launch)
    if not args.gpu and not settings.is_trial:
        resume_point(settings)  # on the machine of the run, output_dir may hold an earlier one
    from trl import SFTConfig  # imported here, so that what is refused above is refused at once

    libraries.rehearse(settings, settings.with_values(ANYWHERE, "preflight").build(SFTConfig))
    plan = make_plan(settings, launch, hardware, load_and_check_data(settings).lengths)
    check_checkpoints_fit(settings, plan)
    print_plan(plan)
    print("Every check passed.", file=sys.stderr)


if __name__ == "__main__":
    run(main)
