"""What users may rely on in the documentation: every command parses, every file and heading that is named exists.

Pages are the Markdown files and what recipes, launch files and scripts say of themselves in their first lines. No
command is run: its own parser reads its words, then it is stopped.
"""

import argparse
import ast
import configparser
import dataclasses
import functools
import importlib
import itertools
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MARKDOWN = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
COMMENTED = sorted(file for place in ("recipes/*.yaml", "accelerate_configs/*.yaml") for file in ROOT.glob(place))
COMMENTED += sorted([*ROOT.glob("docs/*.sh"), *ROOT.glob("docs/*/*.yaml")])
BENCHMARKS = ROOT / "tests/benchmarks"
MODULES = sorted(file for place in ("sft", "data_prep") for file in ROOT.glob(f"{place}/**/*.py"))

# Programs of others, whose words are theirs.
OTHERS = {
    *("apptainer", "cd", "df", "export", "git", "hf", "ip", "kill", "lm_eval", "ls", "module", "nvidia-smi", "salloc"),
    *("scancel", "source", "squeue", "srun", "ssh", "transformers", "trl", "unset", "venv"),
}
PIP_OPTIONS = {"-c", "--constraint", "-e", "--editable", "--no-deps", "-q", "--quiet", "-U", "--upgrade"}
PYTEST_OPTIONS = {"-k", "-m", "-q", "-v", "-x", "--lf"}
# Stand for any option.
PLACEHOLDERS = {"--key", "--any_trl_option"}
# Scripts of the pipeline that this project replaces, and their options: named so that its users find their way.
CLASSIC = {
    *("test_preprocessing.py", "preprocess_pmc_vqa_for_sft.py"),
    *("train_sft_example.py", "inference_example.py"),
}
CLASSIC_OPTIONS = {"--sample_size", "--num_epochs", "--batch_size", "--grad_accum", "--no_lora", "--full_precision"}
# Files that commands write under names of their own, and an example of one that a user writes.
PRODUCTS = {"recipe.yaml", "chat_template.jinja", "clinic.yaml"}
FOLDERS = r"(?:sft|data_prep|recipes|accelerate_configs|tests|docs|\.ci|\.github)/"
ELLIPSES = ("…", "...")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:[^`\n]|\n(?!\s*\n))+)`")
COMPLETE = re.compile(r"(?:python|accelerate launch|make|pip install|sbatch)\s")
IN_COMMENT = re.compile(r"(?:^ *|: )((?:python|accelerate launch|make|pip install|sbatch|lm_eval) .*)$")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


class Parsed(BaseException):
    """A command's words were accepted, and the command is stopped."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command and the place where it stands. In prose, what the reader has to add may be left out."""

    where: str
    text: str
    in_prose: bool = False


# --- From pages to commands, options and names ---


def without(pattern: re.Pattern, text: str, instead: str = "") -> str:
    """`text` with every match replaced, on as many lines as before."""
    return pattern.sub(lambda match: instead + "\n" * match[0].count("\n"), text)


def inline_code(text: str) -> list[tuple[int, str]]:
    """(line, content) of what stands between backticks, outside of blocks."""
    text = without(FENCE, text)
    return [(text.count("\n", 0, m.start()) + 1, " ".join(m[1].split())) for m in INLINE.finditer(text)]


def logical_lines(text: str, first: int = 1) -> list[tuple[int, str]]:
    """(number of the first line, text) of lines that are not empty, joined where they end with a backslash."""
    lines = re.finditer(r"(?:.*\\\n)*.+", text)
    return [(first + text.count("\n", 0, line.start()), line[0].replace("\\\n", "")) for line in lines]


def comment_of(file: Path) -> str:
    """What a module's docstring or a file's comments say, on their own lines."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    lines = [line if file.suffix == ".sh" else line.partition("#")[2] for line in text.splitlines()]
    return "\n".join(re.sub("^#(?!SBATCH) ?", "", line) for line in lines)


@functools.cache
def commands_of(file: Path) -> tuple[Command, ...]:
    """Every complete command that a page shows."""
    name, commands = file.relative_to(ROOT), []
    if file.suffix == ".md":
        text = file.read_text(encoding="utf-8")
        for block in FENCE.finditer(text):
            if block[1] in ("bash", "sh", "shell"):
                lines = logical_lines(block[2], text.count("\n", 0, block.start()) + 2)
                commands += [Command(f"{name}:{line}", command) for line, command in lines]
    else:
        text = comment_of(file)
        for number, line in logical_lines(text):
            # A launch script's variables stand for numbers, and its words for a recipe.
            line = re.sub(r'"\$\(\(.*?\)\)"|"\$\w+"', "8", line.replace("exec ", "")).replace('"$@"', "RECIPE")
            if shown := IN_COMMENT.search(line):
                commands.append(Command(f"{name}:{number}", shown[1]))
    commands += [Command(f"{name}:{n}", code, in_prose=True) for n, code in inline_code(text) if COMPLETE.match(code)]
    return tuple(commands)


def options_in(file: Path) -> list[str]:
    """Every option that a page speaks of without showing a complete command."""
    if file.suffix != ".md":
        lines = [line for _, line in logical_lines(comment_of(file)) if not IN_COMMENT.search(line)]
        return [] if file.suffix == ".sh" else OPTION.findall("\n".join(lines))
    programs = (*OTHERS, "#SBATCH", "pip", "python -m")
    spans = [code for _, code in inline_code(file.read_text(encoding="utf-8")) if not COMPLETE.match(code)]
    return [option for code in spans if not code.startswith(programs) for option in OPTION.findall(code)]


# --- Commands ---


def filled(word: str) -> str:
    """`word` with what stands for something put in: a path with …, * or CAPITALS becomes the first that fits it."""
    if word == "RECIPE":
        return "recipes/pmcvqa.yaml"
    fits = fitting(word) if re.match(FOLDERS, word) and not (ROOT / word).exists() else []
    return str(fits[0].relative_to(ROOT)) if fits else word


def fitting(path: str) -> list[Path]:
    """What exists under a path in which …, * and CAPITALS stand for anything."""
    return sorted(ROOT.glob(re.sub(r"…|\.\.\.|[A-Z]{4,}|\*+", "*", path)))


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command of a shell line, without comments, redirections and variables set before it."""
    line = line.replace("[--key value ...]", "")
    line = re.sub(r"\[(-.*?)\]", r"\1", line)  # what may be left out
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if set(word) <= set("&|;"):
            commands.append([])
        elif set(word) <= set("<>") or skip:
            skip = not skip
        elif commands[-1] or not re.match(r"\w+=", word):
            commands[-1].append(filled(word))
    return [words for words in commands if words]


def check_command(command: Command, here) -> None:
    """Fail if a command would not be understood."""
    for words in simple_commands(command.text):
        kept, partly = [], command.in_prose
        for word in words:
            if word not in ELLIPSES:
                kept.append(word)
            elif kept[-1].startswith("-"):
                kept.append("1")  # stands for a value
            else:
                partly = True
        check_program(kept[0], kept[1:], partly, here)


def check_program(program: str, words: list[str], partly: bool, here) -> None:
    """Fail unless `program` exists and would take these words; with `partly` required ones may be missing."""
    program = program.removeprefix(".venv/bin/")
    if program in OTHERS:
        return
    if program in ("python", "python3"):
        if words[:1] == ["-m"]:
            check_program(words[1], words[2:], partly, here)
        elif words[:1] == ["-c"]:
            compile(words[1], "-c", "exec")
        else:
            check_script(words[0], words[1:], partly, here)
    elif program.startswith("pmcvqa-"):
        others = {"train": "sft/run.py", "prepare": "data_prep/prepare.py", "preview": "data_prep/preview.py"}
        name = program.removeprefix("pmcvqa-")
        check_script(others.get(name, f"sft/{name}.py"), words, partly, here)
    elif program == "accelerate":
        assert words[:1] == ["launch"], words
        check_launch_command(words[1:], partly, here)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for word in words:
            known = rf"^{word.partition('=')[0]} \??:?=" if "=" in word else rf"^{re.escape(word)}:"
            assert re.search(known, makefile, re.MULTILINE), f"the Makefile has no {word}"
    elif program == "pip":
        check_pip(words)
    elif program == "pytest":
        check_options(words, PYTEST_OPTIONS)
    elif program == "sbatch":
        options = list(itertools.takewhile(lambda word: word.startswith("-"), words))
        script, *words = words[len(options) :]
        check_exists(script)
        if "evaluate" in script:
            return check_script("sft/evaluate.py", words, partly, here)
        machines = {"--nodes=1": 8}.get(options[0]) if options else None
        check_training(words, launch_of("accelerate_configs/multi_node.yaml", machines), partly)
    else:
        pytest.fail(f"unknown program {program}")


def check_options(words: list[str], known: set[str]) -> None:
    assert {word for word in words if word.startswith("-")} <= known, words


def check_pip(words: list[str]) -> None:
    """Fail for extras that setup.cfg does not know, or files that are not there."""
    assert words[0] == "install", words
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    check_options(words, PIP_OPTIONS)
    for before, word in itertools.pairwise(words):
        if before in ("-c", "--constraint"):
            check_exists(word)
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(extras[1].split(",")) <= set(setup["options.extras_require"]), word


def check_exists(path: str) -> None:
    assert (ROOT / path).is_file(), f"{path} does not exist"


def launch_of(config_file: str | None, processes: int | None):
    """The launch of a launch file of this repository, with another number of processes if one is given."""
    from sft.training.launch import Launch, read_launch_file

    launch = read_launch_file(ROOT / config_file) if config_file else Launch()
    return dataclasses.replace(launch, processes=processes or launch.processes)


def check_launch_command(words: list[str], partly: bool, here) -> None:
    """Fail unless accelerate takes these words, the launch file is one, and the script takes the rest."""
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()
    parser.allow_abbrev = False
    parser.error = pytest.fail
    for action in parser._actions:
        action.required = action.required and not partly
    args = parser.parse_args(words)
    # Where the package lies is another folder on every machine.
    launch = launch_of(args.config_file and args.config_file.removeprefix("SFT_FOLDER/"), args.num_processes)
    if args.module:
        args.training_script = args.training_script.replace(".", "/") + ".py"
    if args.training_script == "sft/run.py":
        check_training(args.training_script_args, None if partly else launch, partly)
    elif args.training_script:
        check_script(args.training_script, args.training_script_args, partly, here)


def check_training(words: list[str], launch, partly: bool) -> None:
    """Fail if sft/run.py would refuse these words, as far as neither data nor hardware is needed to tell."""
    from sft.training.checks import check_launch, check_recipe
    from sft.training.config import resolve

    if partly and (not words or words[0].startswith("-")):
        words = [filled("RECIPE"), *words]
    settings = resolve([str(ROOT / words[0]), *words[1:]])
    check_recipe(settings)
    if launch:
        check_launch(settings.for_world_size(launch.processes), launch)


def check_script(script: str, words: list[str], partly: bool, here) -> None:
    """Fail unless a script of ours takes these words. It runs up to its parser, sft/preflight.py up to its checks."""
    check_exists(script)
    if script == "sft/multi_node.py":  # its options are accelerate's
        return check_launch_command(["--config_file", "accelerate_configs/multi_node.yaml", *words], partly, here)
    if script == "sft/run.py":
        return check_training(words, None, partly)
    if "argparse" not in (ROOT / script).read_text(encoding="utf-8"):
        assert not words, f"{script} takes no words"
        return None
    if script == "sft/preflight.py" and "--gpu" not in words:
        words = [*(words or [filled("RECIPE")]), "--gpu", "A100-80GB"]
    parse_really = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, *given: object) -> None:
        parser.allow_abbrev = False
        for action in parser._actions:
            action.required = action.required and not partly
        parse_really(parser, *given)
        raise Parsed

    def stop(*_: object) -> None:
        raise Parsed

    for file in MODULES:  # before the patch, which a module that is imported meanwhile would keep
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr("sft.common.models.check_model_folder", stop)
        try:
            done = here(script, *words)
        except Parsed:
            return None
    pytest.fail(f"{script}: {done.stderr[-300:]}")


COMMANDS = [command for file in (*MARKDOWN, *COMMENTED, *MODULES) for command in commands_of(file)]


@pytest.mark.parametrize("command", COMMANDS, ids=[f"{c.where} {' '.join(c.text.split())[:50]}" for c in COMMANDS])
def test_every_command_shown_is_one(command, here):
    check_command(command, here)


@pytest.fixture(scope="module")
def known_options(here) -> set[str]:
    """Every option of every command of the project, of TRL and of `accelerate launch`."""
    from accelerate.commands.launch import launch_command_parser

    from sft.training.config import argument_classes

    known = set(launch_command_parser()._option_string_actions) | PIP_OPTIONS | PYTEST_OPTIONS | PLACEHOLDERS
    fields = [field.name for cls in argument_classes() for field in dataclasses.fields(cls) if field.init]
    known |= {f"--{prefix}{name}" for name in fields for prefix in ("", "no_")}

    def collect(parser: argparse.ArgumentParser, *_: object) -> None:
        known.update(parser._option_string_actions)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", collect)
        for file in (*MODULES, *sorted(BENCHMARKS.glob("*.py"))):
            patch.syspath_prepend(file.parent)  # as Python does for a script; one of them takes it away again
            text = file.read_text(encoding="utf-8")
            if re.search(r"parse_(known_args|args|arguments)\(", text) and "__main__" in text:
                with pytest.raises(Parsed):
                    here(str(file.relative_to(ROOT)))
    return known


SPOKEN_OF = [file for file in (*MARKDOWN, *COMMENTED, *MODULES) if options_in(file)]


@pytest.mark.parametrize("file", SPOKEN_OF, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_option_spoken_of_exists(file, known_options):
    unknown = set(options_in(file)) - known_options - (CLASSIC_OPTIONS if file.name == "README.md" else set())
    assert not unknown


# --- Files, headings and links ---


@functools.cache
def file_names() -> set[str]:
    """The names of the files of this repository."""
    folders = [ROOT / folder for folder in ("sft", "data_prep", "recipes", "accelerate_configs", "tests", "docs")]
    return {file.name for folder in folders for file in folder.rglob("*")} | {file.name for file in ROOT.iterdir()}


def missing_files(text: str) -> list[str]:
    """Paths and names of files of this repository that a text names and that do not exist."""
    text = re.sub(r"https?://\S+", "", text)
    paths = {path.rstrip(".") for path in re.findall(rf"(?<![\w./-])({FOLDERS}[\w./*…-]*)", text)}
    missing = [path for path in paths if not ((ROOT / path).exists() or fitting(path))]
    names = set(re.findall(r"(?<![\w./…*-])([\w-]+\.(?:py|yaml|jinja|sh|cfg|toml|md))\b(?!\w*/)", text))
    return sorted([*missing, *(names - file_names() - CLASSIC - PRODUCTS)])


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    earlier: Counter[str] = Counter()
    made = set()
    for heading in re.findall(r"^#+ +(.*?) *#*$", without(FENCE, text), re.MULTILINE):
        heading = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        made.add(f"{anchor}-{earlier[anchor]}" if earlier[anchor] else anchor)
        earlier[anchor] += 1
    return made


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page to what is not there, or that lead out of the repository."""
    broken = []
    plain = without(INLINE, without(FENCE, text), instead="code")
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)|(?:href|src)=\"([^\"]+)\"", plain):
        link = "".join(target)
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        file = (page.parent / path).resolve() if path else page
        inside = not path.startswith("/") and file.is_relative_to(ROOT) and file.exists()
        if not inside or (anchor and anchor not in anchors(text if file == page else file.read_text("utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("file", [*MARKDOWN, *COMMENTED, *MODULES], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_that_is_named_exists(file):
    text = file.read_text(encoding="utf-8") if file.suffix == ".md" else comment_of(file)
    assert missing_files(text) == []


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_heading_of_the_repository(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
        waiting += {(page.parent / link).resolve() for link in links} - reached
    assert set(MARKDOWN) <= reached


# --- Messages ---


@functools.cache
def messages() -> tuple[str, ...]:
    """Every text in the code of the commands and in the Makefile, with … for what is filled in."""
    texts = [re.sub(r"\$\(\w+\)", "…", (ROOT / "Makefile").read_text(encoding="utf-8"))]
    for node in (node for file in MODULES for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return tuple(texts)


def refusals_in(file: Path) -> set[str]:
    """What a page quotes as our own refusals."""
    code = [code for _, code in inline_code(file.read_text(encoding="utf-8"))]
    return {quote.removeprefix("error:").strip(" …") for quote in code if quote.startswith("error:")} - {""}


@pytest.mark.parametrize("quote", sorted(set().union(*map(refusals_in, MARKDOWN))))
def test_every_refusal_that_is_quoted_is_one(quote):
    assert any(quote in message for message in messages())


# --- The checks themselves ---


@pytest.mark.parametrize(
    "text",
    [
        "python sft/evaluate.py --model_path M --dataset_path D --permutation 4",
        "python sft/evaluate.py --model_path M",
        "python data_prep/prepare.py --dataset_path PMC-VQA --answer_format word",
        "python sft/nowhere.py",
        "python sft/quickstart.py --fast",
        "python sft/preflight.py recipes/pmcvqa.yaml --gpu A1000",
        "accelerate launch --config sft/run.py recipes/pmcvqa.yaml",
        "accelerate launch --config_file accelerate_configs/nowhere.yaml sft/run.py recipes/pmcvqa.yaml",
        "accelerate launch sft/run.py recipes/pmcvqa.yaml --learning_rat 1e-4",
        "accelerate launch … sft/run.py recipes/pmcvqa.yaml --dry_run maybe",
        "accelerate launch --config_file accelerate_configs/zero3.yaml sft/run.py recipes/pmcvqa.yaml",
        "accelerate launch sft/run.py recipes/nowhere.yaml",
        "cd docs && python data_prep/prepare.py --check --data PMC-VQA",
        "make quickstarts",
        "make PYTHONS=python3.11",
        "pip install '.[deepspeeds]'",
        "sbatch docs/nowhere.sh recipes/pmcvqa.yaml",
        "sbatch docs/slurm.sh recipes/pmcvqa_ddp.yaml --global_batch_size 15",
        "sbatch --nodes=1 docs/slurm_evaluate.sh --model_path M --dataset_path D --parts 4",
        "python sft/multi_node.py --rank 0 --main_process_ip 10.0.0.1 sft/run.py recipes/pmcvqa_ddp.yaml",
        "pythn sft/run.py",
        "pmcvqa-trains recipes/pmcvqa.yaml",
        "pmcvqa-train recipes/nowhere.yaml",
        "accelerate launch --config_file SFT_FOLDER/accelerate_configs/nowhere.yaml -m sft.run recipes/pmcvqa.yaml",
        "accelerate launch -m sft.runs recipes/pmcvqa.yaml",
    ],
)
def test_a_wrong_command_is_detected(text, here):
    from sft.common.command import UserError

    with pytest.raises((AssertionError, UserError, pytest.fail.Exception)):
        check_command(Command("here", text), here)


@pytest.mark.parametrize(
    "text",
    [
        "A=b CUDA_VISIBLE_DEVICES=0 python data_prep/prepare.py --check > log.txt  # ten rows",
        "cd PMC-VQA && git status",
        "accelerate launch … sft/run.py RECIPE --output_dir …",
        "make PYTHON=python3.11 quickstart",
    ],
)
def test_a_command_as_people_write_it_is_understood(text, here):
    check_command(Command("here", text), here)


def test_commands_and_options_of_a_page_are_read_with_their_lines(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("a `make\ntest` b\n\n```bash\n# why\npython a.py \\\n    --b\n```\n\n`--c 1` and `make` `d`\n")
    shown = [(command.where, " ".join(command.text.split())) for command in commands_of(page)]
    assert shown == [("page.md:5", "# why"), ("page.md:6", "python a.py --b"), ("page.md:1", "make test")]
    assert options_in(page) == ["--c"]


def test_a_file_that_does_not_exist_is_detected():
    assert missing_files("`sft/run.py`, `run.py`, `recipes/*.yaml`, `recipes/templates/FAMILY.jinja`, docs/.") == []
    assert missing_files("see sft/runs.py, `runs.py` and recipes/….yml") == ["recipes/….yml", "runs.py", "sft/runs.py"]


def test_a_link_that_leads_nowhere_is_detected():
    page = ROOT / "README.md"
    headings, web = "# A `b` c!\n# A b c\n", "[`4`](https://example.org) `[5](6)`"
    assert broken_links(page, f"{headings}[1](docs/data.md#splits) [2](#a-b-c) [3](#a-b-c-1) {web}") == []
    links = ["docs/nowhere.md", "docs/data.md#nowhere", "#nowhere", "/etc/hosts", "../elsewhere.md"]
    assert broken_links(page, " ".join(f"[x]({link})" for link in links)) == links
