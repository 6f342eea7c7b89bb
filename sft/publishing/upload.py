"""The repository on the Hub: whether it may be written, its tags, and the verification of what was uploaded."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from sft.common.command import UserError, first_line, read_json, terminated_as_exit
from sft.common.hub import PAUSES_OF_QUESTIONS, check_push, files_of, reason, status_of, with_retries
from sft.common.models import ADAPTER_CONFIG, MANIFEST, prompt_format
from sft.publishing.staging import ALLOWED, base_here

# Greedy tokens of each first answer that are compared.
ANSWER_TOKENS = 16


def check_repository(repo: str, model: Path, public: bool, update: bool, tag: str | None) -> str | None:
    """The commit that the repository is at, or None where there is none yet.

    Raises:
        UserError: as `check_push`; or the repository holds what this run did not publish, or has the tag.
    """
    from huggingface_hub import hf_hub_download

    info = check_push("--repo", repo, "model", public)
    if info is None:
        return None
    try:
        tags = with_retries(lambda: tags_of(repo), PAUSES_OF_QUESTIONS) if tag else {}
        names = files_of(info)
        there = Path(hf_hub_download(repo, MANIFEST, revision=info.sha)) if MANIFEST in names else None
        same_run = there is not None and run_of(there) == run_of(model / MANIFEST)
    except UserError:
        raise
    except Exception as error:  # whatever the HTTP library raises
        raise UserError(f"--repo {repo}: {reason(error)}") from error
    if tag and tag in tags and not same_run:
        raise UserError(f"--tag {tag}: {repo} has this tag already: choose another")
    if names and not same_run and not update:
        raise UserError(
            f"--repo {repo} holds files that this run did not publish: pass --update to replace its model, or choose "
            "another name"
        )
    return info.sha


def run_of(manifest: Path) -> dict[str, Any]:
    """What a manifest says of its run, whether the model was merged afterwards or not."""
    told = read_json(manifest)
    return {key: value for key, value in told.items() if key != "merged"} if isinstance(told, dict) else {}


def tags_of(repo: str) -> dict[str, str]:
    """The commit of each tag of a repository."""
    from huggingface_hub import HfApi

    return {ref.name: ref.target_commit for ref in HfApi().list_repo_refs(repo).tags}


def set_tag(repo: str, tag: str, commit: str) -> None:
    """Give a commit a tag, unless it has it.

    Raises:
        UserError: the Hub refuses, or the tag names another commit.
    """
    from huggingface_hub import HfApi

    def tagged() -> None:
        if tags_of(repo).get(tag) != commit:
            HfApi().create_tag(repo, tag=tag, revision=commit)

    try:
        with_retries(tagged)
    except Exception as error:  # whatever the HTTP library raises
        why = "it names another commit: choose another" if status_of(error) == 409 else reason(error)
        raise UserError(f"--repo {repo} is published, but not tagged {tag}: {why}") from error


def first_answers(model: Any, tokenizer: Any, answer_format: str) -> list[list[int]]:
    """The first tokens that a model writes, greedily, to each of the demonstration's questions, asked one by one."""
    from sft.inference.assistant import demo_prompts
    from sft.inference.generation import Sampling, generate_ids

    greedy = Sampling(ANSWER_TOKENS, temperature=0)
    return [generate_ids(model, tokenizer, [ids], greedy)[0] for ids in demo_prompts(tokenizer, answer_format)]


def verify(args: argparse.Namespace, base: str, staged: Path, commit: str) -> None:
    """Load what was published, from an empty cache, and compare it with what is here: every file, and first answers.

    The base model of an adapter comes from the usual cache, because its bytes are not ours. On the CPU, because a GPU
    that trained the model in less memory may not hold it in bfloat16.

    Raises:
        UserError: a file is missing or other, the model cannot be loaded, or it answers otherwise.
    """
    import torch
    from huggingface_hub import snapshot_download
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sft.common.command import sha256
    from sft.common.models import load_model

    wrong = f"--repo {args.repo} is uploaded (commit {commit[:12]}) and not as it should be"
    asked = prompt_format(str(staged))
    with terminated_as_exit(), tempfile.TemporaryDirectory(dir=staged.parent) as cache:
        ours = {"revision": commit, "cache_dir": cache, "allow_patterns": list(ALLOWED)}
        try:
            fresh = Path(with_retries(lambda: snapshot_download(args.repo, **ours)))
        except Exception as error:  # whatever the HTTP library raises
            raise UserError(f"{wrong}: it cannot be downloaded again: {reason(error)}") from error
        for file in (path for path in staged.rglob("*") if path.is_file()):
            there = fresh / file.relative_to(staged)
            if not there.is_file() or sha256(there) != sha256(file):
                raise UserError(f"{wrong}: {there.name} is {'other' if there.is_file() else 'not'} there")
        kind = AutoPeftModelForCausalLM if (fresh / ADAPTER_CONFIG).is_file() else AutoModelForCausalLM
        try:
            model = kind.from_pretrained(fresh, dtype=torch.bfloat16, use_safetensors=True, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(fresh, trust_remote_code=False)
            published = first_answers(model.eval(), tokenizer, asked)
            del model
            here = str(staged) if args.merged else args.model_path
            base_model = base_here(here, base)
            own = first_answers(*load_model(here, torch.bfloat16, device="cpu", base=base_model), asked)
        except (OSError, ValueError, RuntimeError, UserError) as error:
            raise UserError(f"{wrong}: it cannot be loaded: {first_line(error)}") from error
    same = sum(a == b for a, b in zip(published, own, strict=True))
    if same < len(own):
        raise UserError(
            f"{wrong}: it gives {len(own) - same} of {len(own)} first answers otherwise than {here}. Is the base "
            "model on the Hub the one that it was trained on?"
        )
    print(f"Verified: loaded afresh, every file the same, {same} of {len(own)} first answers the same")
