"""Put a trained model on the Hub: privately, with a card written from facts, and nothing that should stay here.

    python sft/publish.py --model_path PMC-VQA-SFT-Output/final_model --repo OWNER/NAME --dry_run
    python sft/publish.py --model_path PMC-VQA-SFT-Output/final_model --repo OWNER/NAME --evaluation outputs/eval/tuned

In:  --model_path, the final_model of a run of sft/run.py, or what sft/merge.py made of it; --evaluation, folders that
     sft/evaluate.py wrote for this very model. The token is that of `hf auth login`, or HF_TOKEN; no option takes it.
Out: OUTPUT_DIR/OWNER--NAME, exactly what is uploaded (--dry_run stops there: read its README.md), then one commit in
     the repository, which is loaded afresh from the Hub, compared file by file, and asked the same questions.

A repository that this run did not make is left alone unless --update says otherwise. --public lets others see it, when
all is well.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from sft.common.command import UserError, first_line, read_json, run, terminated_as_exit, whole_folder, write_json
from sft.common.hub import (
    PAUSES_OF_QUESTIONS,
    check_push,
    create,
    files_of,
    is_id,
    make_public,
    patiently,
    pinned,
    push,
    reason,
    status_of,
)
from sft.common.models import (
    ADAPTER,
    ADAPTER_CONFIG,
    FACTS,
    MANIFEST,
    PROMPT_FILE,
    RECIPE,
    base_of,
    check_model_folder,
    load_config,
    prompt_format,
)
from sft.evaluation.comparison import read_evaluation
from sft.leaks import find_leaks

CARD = "README.md"
EVALUATION = "evaluation"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"),
)
WEIGHTS = (
    *(ADAPTER, ADAPTER_CONFIG, "config.json", "generation_config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
)
# All that is ever uploaded. What else lies in a folder stays there.
ALLOWED = (*WEIGHTS, *TOKENIZER, PROMPT_FILE, MANIFEST, RECIPE, *FACTS, CARD, f"{EVALUATION}/*.json")
# Greedy tokens of each first answer that are compared.
ANSWER_TOKENS = 16


def check_facts(folder: Path) -> None:
    """Refuse a folder whose model no card could be written of.

    Raises:
        UserError: no model, or one without the facts of its run.
    """
    check_model_folder(str(folder))
    if not folder.is_dir():
        raise UserError(f"--model_path {folder} is no folder: name the final_model of a run of sft/run.py")
    missing = [name for name in (MANIFEST, RECIPE, PROMPT_FILE) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {', '.join(missing)}: publish the final_model of a run of sft/run.py (a checkpoint, or "
            "a model from elsewhere, lacks the facts that its card would state)"
        )


def check_base(model_path: str, given: str | None) -> str:
    """The Hub id of the base model, which everybody has to find: `given`, or the one that the run began with.

    Raises:
        UserError: it is a folder of this machine, or no id.
    """
    manifest = read_json(Path(model_path) / MANIFEST)
    try:
        trained = manifest["merged"]["onto"] if "merged" in manifest else manifest["base_model"]
        trained = {"name": trained["name"], "revision": trained["revision"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{model_path}/{MANIFEST} does not tell the base model: train with this version") from error
    base = given or (f"{trained['name']}@{trained['revision']}" if trained["revision"] else trained["name"])
    name, _ = pinned(base)
    on_hub = is_id(name) and not Path(name).exists()
    if given and not on_hub:
        raise UserError(f"--base_model {given}: give the model's id on the Hub, OWNER/NAME or OWNER/NAME@COMMIT")
    if not on_hub:
        raise UserError(
            f"{model_path} was trained on {name}, a folder that nobody else has: name the same model on the Hub with "
            "--base_model OWNER/NAME (or OWNER/NAME@COMMIT)"
        )
    return base


def read_results(folders: Sequence[Path], model: Path) -> list[dict[str, Any]]:
    """results.json of evaluations of this very model.

    Raises:
        UserError: one is no finished evaluation, or of another model; or two have the same name.
    """
    from sft.common.command import sha256

    weights = {f"{file.name}:{sha256(file)}" for file in model.glob("*.safetensors")} if folders else set()
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        results = read_evaluation(folder).results
        if not weights <= set(results["fingerprint"].get("model", [])):
            raise UserError(
                f"--evaluation {folder} is not of {model} (its weights are others): evaluate this model with "
                f"python sft/evaluate.py --model_path {model}"
            )
        name = Path(results["name"]).name  # which becomes a file's
        if name in found:
            raise UserError("--evaluation: two of them have the same name: evaluate with another --name")
        found[name] = {**results, "name": name}
    return list(found.values())


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
        tags = patiently(lambda: tags_of(repo), PAUSES_OF_QUESTIONS) if tag else {}
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
        patiently(tagged)
    except Exception as error:  # whatever the HTTP library raises
        why = "it names another commit: choose another" if status_of(error) == 409 else reason(error)
        raise UserError(f"--repo {repo} is published, but not tagged {tag}: {why}") from error


def licence_of(base: str) -> str | None:
    """The licence that the base model's page names, or None where it cannot be asked."""
    from huggingface_hub import HfApi

    name, revision = pinned(base)
    try:
        card = HfApi().model_info(name, revision=revision).card_data
        return (card.get("license_name") or card.get("license")) if card else None
    except Exception:  # whatever the HTTP library raises; the card then says to see the page
        return None


def stage(
    args: argparse.Namespace, base: str, merged_onto: str | None, evaluations: Sequence[dict[str, Any]], folder: Path
) -> None:
    """Write exactly what is to be published into the existing `folder`, merged onto a base model if one is given.

    Raises:
        UserError: the model cannot be merged, a fact is missing, or something in it should stay here.
    """
    from sft.card import Facts, model_card
    from sft.merge import comparison_line, merge

    model = Path(args.model_path)
    if merged_onto:
        print(comparison_line(merge(args.model_path, merged_onto, folder)))
    else:
        for file in sorted(path for path in model.iterdir() if any(fnmatch(path.name, name) for name in ALLOWED)):
            link_or_copy(file, folder / file.name)
        (folder / CARD).unlink(missing_ok=True)
    name, revision = pinned(base)
    if args.base_model:  # the recipe that travels names the model where others find it
        recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
        recipe |= {"model_name_or_path": name, "model_revision": revision or "main"}
        (folder / RECIPE).unlink()
        (folder / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if is_adapter := (folder / ADAPTER_CONFIG).is_file():
        config = read_json(model / ADAPTER_CONFIG)
        for rewritten in (ADAPTER_CONFIG, "config.json"):
            (folder / rewritten).unlink(missing_ok=True)  # not through the link
        # `transformers serve` (5.23) looks at the base model's configuration before it looks for an adapter.
        load_config(base_here(args.model_path, base)).save_pretrained(folder)
        write_json(folder / ADAPTER_CONFIG, {**config, "base_model_name_or_path": name, "revision": revision})
    # How this machine found the tokenizer: others find it elsewhere.
    found = read_json(folder / "tokenizer_config.json")
    (folder / "tokenizer_config.json").unlink()
    found = {key: value for key, value in found.items() if key not in ("is_local", "local_files_only")}
    write_json(folder / "tokenizer_config.json", found)
    for results in evaluations:
        (folder / EVALUATION).mkdir(exist_ok=True)
        write_json(folder / EVALUATION / f"{results['name']}.json", results)

    def told(name: str, otherwise: Any) -> Any:
        return read_json(folder / name) if (folder / name).is_file() else otherwise

    manifest = read_json(folder / MANIFEST)
    facts = Facts(
        repo=args.repo,
        base=name,
        revision=revision,
        is_adapter=is_adapter,
        answer_format=prompt_format(str(folder)),
        licence=args.license,
        base_licence=licence_of(base),
        manifest=manifest,
        dev=told("eval_results.json", {}),
        history=told("history.json", []),
        evaluations=list(evaluations),
        evaluated_before_merging=merged_onto is not None,
        base_was_named=bool(args.base_model),
    )
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    data = [str(told["name"]) for told in manifest.get("datasets", []) if not Path(str(told["name"])).exists()]
    leaks = find_leaks(folder, published=(args.repo, name, *(id for id in data if id.count("/") == 1)))
    if leaks:
        more = f" (and {len(leaks) - 3} more)" if len(leaks) > 3 else ""
        raise UserError(f"not published, because it would tell: {'; '.join(leaks[:3])}{more}: take it out of {model}")


def base_here(model_path: str, base: str) -> str:
    """The base model that an adapter names, or `base` where its folder is gone."""
    named = base_of(model_path)
    return named if Path(named).exists() else base


def link_or_copy(file: Path, to: Path) -> None:
    """The same file under another name, without a second copy of its bytes where the disk allows it."""
    try:
        os.link(file.resolve(), to)
    except OSError:  # another disk
        shutil.copyfile(file, to)


def first_answers(model: Any, tokenizer: Any, answer_format: str) -> list[list[int]]:
    """The first tokens that a model writes, greedily, to each of the demonstration's questions, asked one by one."""
    from sft.inference.assistant import demo_prompts
    from sft.inference.generation import Sampling, written_tokens

    greedy = Sampling(ANSWER_TOKENS, temperature=0)
    return [written_tokens(model, tokenizer, [ids], greedy)[0] for ids in demo_prompts(tokenizer, answer_format)]


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
            fresh = Path(patiently(lambda: snapshot_download(args.repo, **ours)))
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


def check_run(settings: Any) -> None:
    """Make sure, before a run with push_to_hub, that its model can be published in the end.

    The repository is made now, empty and private: nothing else tells for certain that the token may write there.

    Raises:
        UserError: as `check_push`, or the repository holds files already, or cannot be made.
    """
    repo = settings.hub_model_id
    info = check_push("hub_model_id", repo, "model", settings.hub_private_repo is False)
    names = files_of(info)
    # A run that is continued may have published already; sft/publish.py looks whether it was this one.
    continued = settings.resume_from_checkpoint is not None and MANIFEST in names
    if names and not continued:
        raise UserError(
            f"hub_model_id {repo} holds files already: choose another name, or publish afterwards with "
            "sft/publish.py --update"
        )
    create("hub_model_id", repo, "model")


def after_training(settings: Any, final: Path) -> None:
    """Publish the final model of a run, as its recipe says. Called by one process, after the training.

    In a process of its own, so that neither the launcher nor what the trainer holds has a part in it.

    Raises:
        UserError: it could not be published; the model is whole all the same.
    """
    words = ["sft/publish.py", "--model_path", str(final), "--repo", settings.hub_model_id]
    words += ["--public"] if settings.hub_private_repo is False else []
    own = re.compile(r"RANK$|WORLD_SIZE$|^(MASTER|TORCHELASTIC|ACCELERATE|FSDP|ROLE|GROUP)_|^OMP_NUM_THREADS$")
    environment = {name: value for name, value in os.environ.items() if not own.search(name)}
    script = str(Path(__file__).resolve())
    done = subprocess.run([sys.executable, script, *words[1:]], env=environment, check=False)
    if done.returncode:
        raise UserError(f"the model is trained, and whole in {final}, but not published: python {' '.join(words)}")


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="final_model of a run, or a merged one")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="model repository on the Hub")
    parser.add_argument(
        "--evaluation", type=Path, nargs="+", default=[], help="evaluations of this model, for the card"
    )
    parser.add_argument(
        "--merged", action="store_true", help="publish the adapter merged into its base (sft/merge.py)"
    )
    parser.add_argument("--base_model", help="the base model on the Hub, where the run took it from a folder")
    parser.add_argument("--license", help="licence of what is published, as the Hub names it: cc-by-sa-4.0, ...")
    parser.add_argument("--public", action="store_true", help="let everybody see it, once it is verified")
    parser.add_argument("--update", action="store_true", help="replace the model in a repository that others filled")
    parser.add_argument("--tag", help="name of this version in the repository, such as v1")
    parser.add_argument("--dry_run", action="store_true", help="write what would be uploaded, and upload nothing")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/publish"), help="where it is written first")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if not is_id(args.repo):
        raise UserError(f"--repo {args.repo}: give OWNER/NAME")
    if args.tag and not re.fullmatch(r"\w[\w.-]*", args.tag):
        raise UserError(f"--tag {args.tag}: give letters, digits, dots and dashes, as in v1.0")
    model = Path(args.model_path)
    check_facts(model)
    base = check_base(args.model_path, args.base_model)
    evaluations = read_results(args.evaluation, model)
    folder = args.output_dir / args.repo.replace("/", "--")
    merged_onto = None
    if args.merged:
        from sft.merge import check_disk, check_mergeable, weight_bytes

        # Onto the base that the run had; or onto the one that is named, where that is gone or quantised.
        try:
            merged_onto = check_mergeable(args.model_path, base_here(args.model_path, base))
        except UserError:
            if not args.base_model:
                raise
            merged_onto = check_mergeable(args.model_path, base)
        check_disk(folder, weight_bytes(merged_onto) * (1 if args.dry_run else 2))  # verification downloads it again
    parent = None if args.dry_run else check_repository(args.repo, model, args.public, args.update, args.tag)

    with whole_folder(folder, overwrite=True) as temporary:
        stage(args, base, merged_onto, evaluations, temporary)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        print(f"  {file.relative_to(folder)!s:<40} {file.stat().st_size:>15,} bytes")
    print(f"{len(files)} files in {folder}; its card is {folder / CARD}", flush=True)
    if args.dry_run:
        print("Nothing was uploaded.")
        return

    commit = push("--repo", args.repo, "model", folder, "A model with its card", ALLOWED, ALLOWED, parent).oid
    print(f"Uploaded: {args.repo}, commit {commit}", flush=True)
    verify(args, base, folder, commit)
    if args.public:
        make_public("--repo", args.repo, "model")
    if args.tag:
        set_tag(args.repo, args.tag, commit)
    seen = "public" if args.public else "private"
    print(f"Published ({seen}): {args.repo}{f', tag {args.tag}' if args.tag else ''}")


if __name__ == "__main__":
    run(main)
