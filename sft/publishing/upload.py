"""The repository on the Hub: whether it may be written, its tags, and the verification of what was uploaded."""

import argparse
import filecmp
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub  # which loads its parts when they are used

from sft.common.command import UserError, first_line, read_json, terminated_as_exit
from sft.common.hub import QUERY_PAUSES, attempt, check_push, files_of
from sft.common.models import MANIFEST, load_model, prompt_format
from sft.publishing.staging import UPLOADED_FILES

# Greedy tokens of each first answer that are compared.
ANSWER_TOKENS = 16


def check_repository(repo: str, model: Path, public: bool, update: bool, tag: str | None) -> str | None:
    """The commit that the repository is at, or None where there is none yet.

    Raises `UserError` as `check_push`, or if the repository holds what this run did not publish, or has the tag.
    """
    words = f"--repo {repo}"
    info = check_push("--repo", repo, "model", public)
    if info is None:
        return None
    names = files_of(info)
    if MANIFEST in names:
        file = attempt(words, lambda: huggingface_hub.hf_hub_download(repo, MANIFEST, revision=info.sha), QUERY_PAUSES)
        manifest, own = read_json(Path(file)), read_json(model / MANIFEST)
        # The same run, whether its model was merged afterwards or not.
        if isinstance(manifest, dict) and manifest | {"merged": None} == own | {"merged": None}:
            return info.sha
    if tag and tag in attempt(words, lambda: tags_of(repo), QUERY_PAUSES):
        raise UserError(f"--tag {tag}: {repo} has this tag already: choose another")
    if names and not update:
        raise UserError(
            f"--repo {repo} holds files that this run did not publish: pass --update to replace its model, or choose "
            "another name"
        )
    return info.sha


def tags_of(repo: str) -> dict[str, str]:
    """The commit of each tag of a repository."""
    return {ref.name: ref.target_commit for ref in huggingface_hub.list_repo_refs(repo).tags}


def set_tag(repo: str, tag: str, commit: str) -> None:
    """Give a commit a tag; raises `UserError` if the Hub refuses, or the tag names another commit."""
    words = f"--repo {repo} is published, but not tagged {tag}"
    attempt(words, lambda: huggingface_hub.create_tag(repo, tag=tag, revision=commit, exist_ok=True))
    if attempt(words, lambda: tags_of(repo)[tag]) != commit:
        raise UserError(f"{words}: it names another commit: choose another")


def first_answers(model: Any, tokenizer: Any, answer_format: str) -> list[list[int]]:
    """The first tokens that a model generates, greedily, for each of the demonstration's questions, one by one."""
    from sft.inference.assistant import demo_prompts
    from sft.inference.generation import Sampling, generate_ids

    greedy = Sampling(ANSWER_TOKENS, temperature=0)
    return [generate_ids(model, tokenizer, [ids], greedy)[0] for ids in demo_prompts(tokenizer, answer_format)]


def verify(args: argparse.Namespace, base_here: str, staged: Path, commit: str) -> None:
    """Load what was published, from an empty cache, and compare it with what is here: every file, and first answers.

    The base model of an adapter comes from the usual cache, because its bytes are not ours; `base_here` is what the
    local adapter is put onto. On the CPU, because a GPU that trained with less memory may not hold it in bfloat16.
    Raises `UserError` if a file is missing or differs, or the model cannot be loaded or answers differently.
    """
    import torch

    wrong = f"--repo {args.repo} is uploaded (commit {commit[:12]}) and failed verification"
    answer_format = prompt_format(str(staged))
    with terminated_as_exit(), tempfile.TemporaryDirectory(dir=staged.parent) as cache:
        options = {"revision": commit, "cache_dir": cache, "allow_patterns": list(UPLOADED_FILES)}
        words = f"{wrong}: it cannot be downloaded again"
        fresh = Path(attempt(words, lambda: huggingface_hub.snapshot_download(args.repo, **options)))
        files = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
        # The bytes, not the Hub's checksums (`verify_repo_checksums`): they have to be downloaded to be loaded anyway.
        _, differing, missing = filecmp.cmpfiles(staged, fresh, files, shallow=False)
        if differing or missing:
            raise UserError(f"{wrong}: {[*differing, *missing][0]} {'differs' if differing else 'is not'} there")
        try:
            published = first_answers(*load_model(str(fresh), torch.bfloat16, device="cpu"), answer_format)
            here, base = (str(staged), None) if args.merged else (args.model_path, base_here)
            own = first_answers(*load_model(here, torch.bfloat16, device="cpu", base=base), answer_format)
        except (OSError, ValueError, RuntimeError, UserError) as error:
            raise UserError(f"{wrong}: it cannot be loaded: {first_line(error)}") from error
    same = sum(a == b for a, b in zip(published, own, strict=True))
    if same < len(own):
        raise UserError(
            f"{wrong}: it gives {len(own) - same} of {len(own)} first answers otherwise than {here}. Is the base "
            "model on the Hub the one that it was trained on?"
        )
    print(f"Verified: loaded afresh, every file the same, {same} of {len(own)} first answers the same")
