"""A launch file means to preflight what it means to accelerate."""

from pathlib import Path

import pytest

from sft.common.command import UserError
from sft.training.hardware import GPUS, planned_hardware
from sft.training.launch import Launch, current_launch, read_launch_file

FILES = sorted(Path(__file__).parents[2].glob("accelerate_configs/*.yaml"))


def environment_of(file: Path) -> dict[str, str]:
    """What accelerate itself would put into the environment of the processes that it starts with `file`."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import launch

    words = ["--config_file", str(file), "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        _, environment = launch.prepare_deepspeed_cmd_env(args)
    elif args.multi_gpu or args.use_fsdp:
        environment = launch.prepare_multi_gpu_env(args)
    else:
        _, environment = launch.prepare_simple_launcher_cmd_env(args)
    if args.num_processes > 1:  # as torchrun sets them
        environment["WORLD_SIZE"] = str(args.num_processes)
        environment["LOCAL_WORLD_SIZE"] = str(args.num_processes // args.num_machines)
        environment["LOCAL_RANK"] = "0"
    return environment


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_launch_file_is_read_as_accelerate_reads_it_and_leaves_the_precision_to_the_recipe(file):
    launch = read_launch_file(file)
    assert current_launch(environment_of(file)) == launch
    assert launch.precision == "no"
    assert launch.saves_full_weights


def test_python_alone_is_one_process():
    assert current_launch({}) == Launch()


WITH_DEEPSPEED_FILE = "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: FOLDER/ds.json}"


@pytest.mark.parametrize(
    ("text", "deepspeed", "launch"),
    [
        (
            WITH_DEEPSPEED_FILE + "\nnum_processes: 4",
            '{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": true}}',
            Launch("deepspeed", 4, precision="bf16", zero_stage=3, offload=True, saves_full_weights=False),
        ),
        (
            WITH_DEEPSPEED_FILE,
            '{"zero_optimization": {"stage": 2, "offload_param": null}, "bf16": null}',
            Launch("deepspeed", zero_stage=2),
        ),
        ("distributed_type: FSDP\nfsdp_config:\n", "", Launch("fsdp", fsdp_version=1)),
    ],
    ids=["the user's DeepSpeed file decides", "empty parts of it are defaults", "empty parts of the launch file too"],
)
def test_a_launch_file_of_the_user_is_read(tmp_path, text, deepspeed, launch):
    (tmp_path / "ds.json").write_text(deepspeed)
    (tmp_path / "launch.yaml").write_text(text.replace("FOLDER", str(tmp_path)))
    assert read_launch_file(tmp_path / "launch.yaml") == launch


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("distributed_type: MEGATRON_LM", "not one that this project knows"),
        ("just words", "not one that this project knows"),
        ("distributed_type: MULTI_GPU\nnum_processes: -2", "num_processes -2 on num_machines 1"),
        ("distributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 3", "num_processes 2 on num_machines 3"),
        ("a: b: c", "not one that this project knows"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: many}", "not one that this project knows"),
        (WITH_DEEPSPEED_FILE, "FOLDER/ds.json cannot be read"),
    ],
)
def test_what_is_no_launch_file_is_refused(tmp_path, text, words):
    file = tmp_path / "launch.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_launch_file(file)


def test_an_unknown_gpu_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="A100-80GB"):
        planned_hardware("A1000", 1)
    assert planned_hardware("T4", 2).count == 2
    assert all(planned_hardware(gpu, 1).memory > 10 for gpu in GPUS)
