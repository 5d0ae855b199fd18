"""Write the tables of README.md and docs/ from results/*.json and from the code: nothing in them is typed by hand.

A table stands between two comments. The first says what it shows, the script fills in what lies between:

    <!-- results/NAME.json runs: seed, srcc_before, srcc_after -->      one row per run, then mean and spread
    <!-- results/NAME.json summary: per_degradation -->                 one row per entry, mean and spread over runs
    <!-- end results -->
    <!-- fields thurl.recipe.sections:RewardSection -->                 the keys of a recipe section
    <!-- end fields -->
    <!-- plan DEVICE -->                                                what `thurl plan` says of all models
    <!-- end plan -->

`python scripts/tables.py` writes, `--check` only says (exit code 1) which pages are out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from thurl.recipe.plan import make_plan
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe
from thurl.rl.plan.shape import RELEASED
from thurl.rl.plan.time import device_named
from thurl.training.results import read_results


ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r"(?P<open><!-- (?P<file>results/[\w./-]+\.json) (?P<kind>runs|summary): (?P<what>[^>]*?) -->\n)"
    r"(?P<body>.*?)(?P<close><!-- end results -->)",
    re.DOTALL,
)
FIELDS = re.compile(
    r"(?P<open><!-- fields (?P<module>[\w.]+):(?P<name>\w+) -->\n)(?P<body>.*?)(?P<close><!-- end fields -->)",
    re.DOTALL,
)
PLAN = re.compile(r"(?P<open><!-- plan (?P<device>\w+) -->\n)(?P<body>.*?)(?P<close><!-- end plan -->)", re.DOTALL)
PLANNED_GPUS = (1, 8, 16, 32, 64)
# Same rows in flight for every model: 2 pictures x 6 answers at a time, 8 pictures per generation batch and GPU.
PLANNED = (
    *("training.per_device_train_batch_size=12", "training.gradient_accumulation_steps=4", "reward.scope=global"),
    "training.output_dir=runs/plan",
)
WORDS = {
    **{name: name.upper() for name in ("srcc", "plcc", "auc", "tpr", "psnr", "ssim")},
    "std": "SD",
    "mib": "MiB",
}


def pages(root: Path) -> list[Path]:
    """All pages that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str, root: Path) -> str:
    """The page with all its tables written anew."""
    text = BLOCK.sub(lambda block: block["open"] + _table(block, root) + block["close"], text)
    text = FIELDS.sub(lambda block: block["open"] + _fields(block) + block["close"], text)
    return PLAN.sub(lambda block: block["open"] + _planned(block["device"]) + block["close"], text)


def _planned(name: str) -> str:
    """Model and way to train against numbers of GPUs: GiB at the peak and seconds of a step, or what is missing."""
    device = device_named(name)
    rows = [["model", "trained", "rollouts", *(f"{gpus} GPU{'s' if gpus > 1 else ''}" for gpus in PLANNED_GPUS)]]
    for model in RELEASED:
        for recipe, trained, mode in (
            ("visualquality_r1_lora", "LoRA", "colocate"),
            ("visualquality_r1", "all weights", "colocate"),
            ("visualquality_r1", "all weights", "server"),
        ):
            cells = [_planned_cell(recipe, model, mode, gpus, device) for gpus in PLANNED_GPUS]
            rows.append([model, trained, mode, *cells])
    return "\n" + _markdown(rows) + "\n\n"


def _planned_cell(recipe: str, model: str, mode: str, gpus: int, device: Any) -> str:
    # The engine is split over as few GPUs as leave it room, and takes its weights and a tenth of the GPU.
    weights = 2 * RELEASED[model].parameters / 2**30 / device.memory
    split = next((count for count in (1, 2, 4, 8) if weights / count < 0.5), 8)
    if mode == "colocate" and split > gpus:
        return "does not fit"
    overrides = [
        f"model.name_or_path=Qwen/{model}-Instruct",
        f"training.vllm_mode={mode}",
        f"training.vllm_tensor_parallel_size={split if mode == 'colocate' else 1}",
        f"training.vllm_gpu_memory_utilization={min(0.9, weights / split + 0.1):.2f}",
        *PLANNED,
    ]
    loaded = load_recipe(find_recipe(recipe), overrides, processes=gpus)
    plan = make_plan(loaded.recipe, gpus=gpus, memory=device.memory, zero=3 if gpus > 1 else 0, device=device)
    if not plan.fits:
        return f"no: {plan.peak / 2**30:.0f} GiB"
    return f"{plan.peak / 2**30:.0f} GiB, {sum(plan.seconds.values()):.0f} s"


def _fields(block: re.Match[str]) -> str:
    model = getattr(import_module(block["module"]), block["name"])
    schema = model.model_json_schema()
    rows = [["key", "value", "default"]]
    for name, entry in schema["properties"].items():
        required = name in schema.get("required", ())
        rows.append([f"`{name}`", _kind(entry, schema), "needed" if required else _default(entry)])
    return "\n" + _markdown(rows, right=False) + "\n\n"


def _kind(entry: dict[str, Any], schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in entry:
        target = schema["$defs"][entry["$ref"].rpartition("/")[2]]
        return _kind(target, schema) if "enum" in target else "section"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    choices = entry.get("anyOf") or entry.get("oneOf")
    if choices:
        kinds = [_kind(choice, schema) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    kind = entry.get("type", "any")
    if kind == "array":
        if "prefixItems" in entry:
            return f"list of {len(entry['prefixItems'])} x {_kind(entry['prefixItems'][0], schema)}"
        return f"list of {_kind(entry.get('items', {}), schema)}"
    words = {"integer": "whole number", "boolean": "`true`, `false`", "string": "text", "object": "mapping"}
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {entry[key]:g}" for key, sign in bounds.items() if key in entry]
    return " ".join([words.get(kind, kind), ", ".join(limits)]).strip()


def _default(entry: dict[str, Any]) -> str:
    default = entry.get("default")
    if default is None or default in ([], {}):
        return ""
    if isinstance(default, dict):
        return "its defaults"
    return f"`{json.dumps(default)}`" if isinstance(default, bool | list) else f"`{default}`"


def _table(block: re.Match[str], root: Path) -> str:
    if not (root / block["file"]).is_file():
        return f"\nNot measured yet: `{block['file']}` does not exist.\n\n"
    document = read_results(root / block["file"])
    if block["kind"] == "runs":
        rows = _run_rows(document, [name.strip() for name in block["what"].split(",")])
    else:
        rows = _summary_rows(document, block["what"].strip())
    return "\n" + _markdown(rows) + "\n\n" + _source(document, block["file"]) + "\n\n"


def _run_rows(document: dict[str, Any], columns: list[str]) -> list[list[str]]:
    rows = [[_heading(name) for name in columns]]
    rows += [[_cell(name, _value(run, name)) for name in columns] for run in document["runs"]]
    if len(document["runs"]) > 1:
        rows.append(["mean ± SD", *(_spread(document["summary"].get(name), name) for name in columns[1:])])
    return rows


def _summary_rows(document: dict[str, Any], prefix: str) -> list[list[str]]:
    entries: dict[str, dict[str, dict[str, Any]]] = {}
    for name, spread in document["summary"].items():
        if name.startswith(prefix + "."):
            row, _, column = name.removeprefix(prefix + ".").partition(".")
            counted = len(document["runs"]) == 1 and isinstance(_value(document["runs"][0], name), int)
            entries.setdefault(row, {})[column or "value"] = {**spread, "counted": counted}
    columns = list(dict.fromkeys(column for row in entries.values() for column in row))
    rows = [
        [prefix.rpartition(".")[2].replace("_", " ").replace("per ", ""), *(_heading(column) for column in columns)]
    ]
    rows += [
        [row.replace("_", " "), *(_spread(values.get(column), column) for column in columns)]
        for row, values in entries.items()
    ]
    return rows


def _value(run: dict[str, Any], name: str) -> Any:
    value: Any = run
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _heading(name: str) -> str:
    return " ".join(WORDS.get(word, word) for word in re.split(r"[_.]", name))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, float):
        return f"{value:.0f}" if name.endswith(("seconds", "mib")) else f"{value:.3f}"
    return str(value)


def _spread(spread: dict[str, Any] | None, name: str) -> str:
    if spread is None:
        return ""
    if spread["mean"] is None:
        return "undefined"
    if spread.get("counted"):
        return f"{spread['mean']:.0f}"
    digits = 0 if name.endswith(("seconds", "mib")) else 3
    if 0 < abs(spread["mean"]) < 0.5 * 10**-digits:
        return f"{spread['mean']:.0e}"  # small is not nothing
    text = f"{spread['mean']:.{digits}f}"
    return text if spread["std"] is None else f"{text} ± {spread['std']:.{digits}f}"


def _markdown(rows: list[list[str]], *, right: bool = True) -> str:
    head, *body = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    rule = "|---" + ("|---:" if right else "|---") * (len(rows[0]) - 1) + "|"
    return "\n".join([head, rule, *body])


def _source(document: dict[str, Any], file: str) -> str:
    machine = document.get("machine", {})
    where = (
        ", ".join(machine.get("cuda") or []) or f"{machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores"
    )
    count = len(document["runs"])
    parts = [f"`{file}`", f"recipe `{document['recipe']}`", f"{count} run{'s' if count > 1 else ''}", where]
    if document.get("overrides"):
        parts.append(f"overrides {document['overrides']}")
    if document.get("commit"):
        parts.append(f"commit {document['commit'][:10]}")
    return f"*{'; '.join(parts)}. {document.get('note', '')}".rstrip() + "*"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is out of date")
    arguments = parser.parse_args()
    stale = []
    for page in pages(ROOT):
        text = page.read_text(encoding="utf-8")
        new = filled(text, ROOT)
        if new != text:
            stale.append(page)
            if not arguments.check:
                page.write_text(new, encoding="utf-8")
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'out of date; run `make tables`' if arguments.check else 'written'}")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
