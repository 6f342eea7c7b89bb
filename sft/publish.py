"""Put a trained model on the Hub: privately, with a card written from facts, and nothing that should stay here.

    python sft/publish.py --model_path PMC-VQA-SFT-Output/final_model --repo OWNER/NAME --dry_run
    python sft/publish.py --model_path PMC-VQA-SFT-Output/final_model --repo OWNER/NAME --evaluation outputs/eval/tuned

In:  --model_path, the final_model of a run of sft/run.py, or what sft/merge.py made of it; --evaluation, folders that
     sft/evaluate.py wrote for this very model. The token is that of `hf auth login`, or HF_TOKEN; no option takes it.
Out: OUTPUT_DIR/OWNER--NAME, exactly what is uploaded (--dry_run stops there: read its README.md), then one commit in
     the repository, which is loaded afresh from the Hub, compared file by file, and answers the same questions.

A repository that this run did not make is left alone unless --update says otherwise. --public lets others see it, when
all is well.
"""

import argparse
import re
from pathlib import Path

from sft.common.command import UserError, atomic_folder, check_holds_only, run
from sft.common.hub import is_id, make_public, push
from sft.common.models import ADAPTER_CONFIG, load_config
from sft.publishing.staging import CARD_FILE, UPLOADED_FILES, check_base, check_facts, read_results, stage
from sft.publishing.upload import check_repository, set_tag, verify


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="final_model of a run, or a merged one")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="model repository on the Hub")
    parser.add_argument("--evaluation", type=Path, nargs="+", default=[], help="evaluations of it, for the card")
    parser.add_argument("--merged", action="store_true", help="publish it merged into its base (sft/merge.py)")
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
    base, base_here = check_base(args.model_path, args.base_model)
    evaluations = read_results(args.evaluation, model)
    folder, repo = args.output_dir / args.repo.replace("/", "--"), ("--repo", args.repo, "model")
    check_holds_only(folder, UPLOADED_FILES, "what was published")
    merged_onto = None
    if args.merged:
        from sft.publishing.merging import check_mergeable, check_space

        # Onto the base that the run had; or onto the one that is named, where that is gone or quantised.
        try:
            merged_onto = check_mergeable(args.model_path, base_here)
        except UserError:
            if not args.base_model:
                raise
            merged_onto = check_mergeable(args.model_path, base)
        check_space(merged_onto, folder, copies=1 if args.dry_run else 2)  # verification downloads it again
    parent = None if args.dry_run else check_repository(args.repo, model, args.public, args.update, args.tag)

    if not args.dry_run and not args.merged and (model / ADAPTER_CONFIG).is_file():
        load_config(base)  # the base model on the Hub, which verification puts the adapter onto
    with atomic_folder(folder, overwrite=True) as temporary:
        stage(args, base, base_here, merged_onto, evaluations, temporary)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        print(f"  {file.relative_to(folder)!s:<40} {file.stat().st_size:>15,} bytes")
    print(f"{len(files)} files in {folder}; its card is {folder / CARD_FILE}", flush=True)
    if args.dry_run:
        print("Nothing was uploaded.")
        return

    commit = push(*repo, folder, "A model with its card", UPLOADED_FILES, UPLOADED_FILES, parent).oid
    print(f"Uploaded: {args.repo}, commit {commit}", flush=True)
    verify(args, base_here, folder, commit)
    if args.public:
        make_public(*repo)
    if args.tag:
        set_tag(args.repo, args.tag, commit)
    seen = "public" if args.public else "private"
    print(f"Published ({seen}): {args.repo}{f', tag {args.tag}' if args.tag else ''}")


if __name__ == "__main__":
    run(main)
