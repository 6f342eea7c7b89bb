"""A run with push_to_hub: before it, whether its model could be published; after it, sft/publish.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

from sft.common.command import UserError
from sft.common.hub import check_push, create, files_of
from sft.common.models import MANIFEST
from sft.training.config import Settings

PUBLISH = Path(__file__).parents[1] / "publish.py"
# What a launcher put into the environment.
LAUNCHERS_OWN = re.compile(r"RANK$|WORLD_SIZE$|^(MASTER|TORCHELASTIC|ACCELERATE|FSDP|ROLE|GROUP)_|^OMP_NUM_THREADS$")


def check_hub(settings: Settings) -> None:
    """Make the repository, empty and private: nothing else shows for certain that the token may write there.

    Raises `UserError` as `check_push`, or if the repository holds files already, or cannot be made.
    """
    repo = settings.hub_model_id
    names = files_of(check_push("hub_model_id", repo, "model", settings.hub_private_repo is False))
    # A run that is continued may have published already; sft/publish.py checks that it was this one.
    if names and (settings.resume_from_checkpoint is None or MANIFEST not in names):
        raise UserError(
            f"hub_model_id {repo} holds files already: choose another name, or publish afterwards with "
            "sft/publish.py --update"
        )
    create("hub_model_id", repo, "model")


def publish(settings: Settings, final: Path) -> None:
    """Publish the final model in a process without the launcher's environment or the trainer's memory."""
    words = ["--model_path", str(final), "--repo", settings.hub_model_id]
    words += ["--public"] if settings.hub_private_repo is False else []
    environment = {name: value for name, value in os.environ.items() if not LAUNCHERS_OWN.search(name)}
    done = subprocess.run([sys.executable, str(PUBLISH), *words], env=environment, check=False)
    if done.returncode:
        raise UserError(
            f"the model is trained, and complete in {final}, but not published: "
            f"python sft/publish.py {' '.join(words)}"
        )
