"""The report of tests/benchmarks/gpu.py: its sections as Markdown, to paste into docs/benchmarks.md, and as a page."""

from pathlib import Path

from gpu_sections import SECTIONS, Results, Section, why_not
from gpu_steps import STEPS, Step

from sft.common.command import atomic_write
from sft.common.display import render


def heading(results: Results) -> list[str]:
    """Device, date, versions, command, and what is missing."""
    state, stack = results.state, results.of(Step(1, "stack"))
    device = stack.get("device")
    lines = []
    if device:
        memory = f", {device['memory']:.0f} GiB" if device["memory"] else ""
        capability = f", compute capability {'.'.join(map(str, device['capability']))}" if memory else ""
        there = ", ".join(f"{name} {value}" for name, value in stack["versions"].items() if value)
        lines += [f"{device['name']}{memory}{capability}, {state['date']}.", f"{there}."]
    if state["of"]["rehearsal"]:
        lines.append("A rehearsal on a CPU with a tiny model: nothing here was measured on a GPU.")
    inputs = results.of(Step(1, "inputs"))
    if not why_not(inputs):
        lines.append(f"Model {Path(inputs['model']).name}, {inputs['rows']:,} seeded rows.")
    missing = [step.name for step in STEPS if "missing" in results.of(step)]
    if missing:
        lines.append(f"Not reached, {len(missing)} of {len(STEPS)} steps (the same command goes on with them).")
    return lines


def command_of(state: dict) -> str:
    # The report is for others: without the path of a folder here.
    options = f" --model {Path(state['of']['model']).name}" if state["of"]["model"] else ""
    return f"python tests/benchmarks/gpu.py{options}{' --rehearse' if state['of']['rehearsal'] else ''}"


def markdown(lines: list[str], command: str, sections: list[Section]) -> str:
    text = ["# Measured by tests/benchmarks/gpu.py", "", "```bash", command, "```", "", *lines]
    for section in sections:
        text += ["", f"## {section.title}", ""]
        for title, head, rows in section.tables:
            text += [f"{title}:", ""] if title else []
            text += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
            text += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
            text.append("")
        text += [f"- {note}" for note in section.notes]
    return "\n".join(text).rstrip() + "\n"


def write_report(state: dict, out: Path) -> None:
    """Write report.md and report.html."""
    results = Results(state)
    device = results.of(Step(1, "stack")).get("device") or {}
    sections = [make(results) for make in SECTIONS]
    lines, command = heading(results), command_of(state)
    page = render(
        Path(__file__).with_name("gpu_report.html"), lines=lines, command=command, sections=sections, device=device
    )
    for name, text in {"report.md": markdown(lines, command, sections), "report.html": page}.items():
        with atomic_write(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
