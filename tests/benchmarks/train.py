"""Training speed, side by side: python tests/benchmarks/train.py --shape tiny --device cpu

Three ways to train the same base on the same rows with the same recipe, batch and precision, in turn, each time in a
fresh process: this project's `sft/run.py`; `trl sft --config` with what `python -m sft.recipe export` prints; and the
report's way, transformers' own Trainer with rows padded to 128 tokens and the loss on prompt and answer.

- samples/s and labelled (answer) tokens/s: over all steps but the first `--warmup`, from the end of the last of these to
  the end of the last step, so with fetching rows, the optimizer and logging;
- first step: seconds from the start of the process to the end of step 1: imports, data, weights;
- peak memory: of the process on a CPU (VmHWM), of PyTorch's allocator on a GPU, until the last step;
- held-out loss: nats an answer token on the same held-out pairs after the last step, one pair at a time: nobody is fast
  by learning less. Real BLOOM shapes have random weights, made on the spot.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import sides
import yaml

from sft.command import parse_count
from sft.recipe import export_trl, load_recipe

SIDES = ("this project", "trl sft", "report")
COLUMNS = {
    "samples_per_second": "samples/s",
    "labelled_tokens_per_second": "labelled tokens/s",
    "peak_memory_gib": "peak memory, GiB",
    "first_step_seconds": "first step, s",
    "held_out_loss": "held-out loss, nats",
}
EPOCH = 18_000  # pairs: about those of ParaDetox's training split


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sides.RECIPES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=parse_count, default=40)
    parser.add_argument("--warmup", type=parse_count, default=5, help="first steps that do not count")
    parser.add_argument("--repeats", type=parse_count, default=3)
    parser.add_argument(
        "--layers", type=parse_count, help="fewer layers than the shape has, to try the command"
    )
    parser.add_argument(
        "--batch", type=parse_count, help="per_device_train_batch_size, in place of the recipe's"
    )
    parser.add_argument("--data", default="recipes/tiny-corpus.tsv", help="data.source")
    parser.add_argument(
        "--held_out", type=parse_count, default=64, help="validation pairs for the loss at the end"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--out", type=Path, default=sides.FIGURES)
    arguments, extra = parser.parse_known_args()  # what is left overrides the recipe, for every side
    if arguments.warmup >= arguments.steps:
        parser.error("--warmup must be below --steps")
    work = sides.make_work_folder()
    base = sides.make_base(arguments.shape, arguments.layers, work)
    words = sides.list_overrides(
        arguments.shape, base, arguments.data, arguments.device, arguments.steps, arguments.batch
    )
    words += extra
    job = write_job(arguments, words, work)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in arguments.sides}
    failures: dict[str, str] = {}
    for turn in range(arguments.repeats):
        for side in arguments.sides:
            out = work / "job" / "result.json"
            out.unlink(missing_ok=True)
            path = work / "job" / "job.json"
            path.write_text(json.dumps(job | {"side": side, "out": str(out)}))
            failure = sides.run_fresh(
                ["tests/benchmarks/measure.py", str(path)], work / f"{side.replace(' ', '-')}.log"
            )
            if failure:
                failures[side] = failure
            else:
                runs[side].append(json.loads(out.read_text()))
            print(f"{turn + 1}/{arguments.repeats} {side}: {failure or runs[side][-1]}", flush=True)
    recipe = load_recipe(words[0], words[1:])
    figures = {
        "machine": sides.describe_machine(arguments.device),
        "shape": arguments.shape,
        "layers": arguments.layers,
        "device": arguments.device,
        "steps": arguments.steps,
        "warmup": arguments.warmup,
        "batch": recipe.trl["per_device_train_batch_size"] * recipe.trl["gradient_accumulation_steps"],
        "bits": 4 if recipe.trl["load_in_4bit"] else 16,
        "data": Path(arguments.data).name,
        "runs": runs,
        "medians": {side: sides.median(values) for side, values in runs.items()},
        "failures": failures,
    }
    name = sides.name_figures(f"train-{arguments.shape}", arguments.layers, arguments.device)
    sides.write_figures(name, figures, print_table(figures), arguments.out)


def write_job(arguments: argparse.Namespace, words: list[str], work: Path) -> dict[str, Any]:
    """Write the rows and TRL's recipe; return what measure.py needs for any side."""
    from sft.augment import make_training_examples
    from sft.preflight import inspect_recipe
    from sft.prompt import format_prompt

    folder = work / "job"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "rows").mkdir(parents=True)
    preflight = inspect_recipe(words[0], words[1:])
    if preflight.precision_note:
        words = [*words, "--bf16", "false", "--dtype", "float32"]  # for every side, the plain ones too
    train = preflight.tokens["train"]
    made = make_training_examples(preflight.splits, preflight.recipe.data, preflight.targets)
    pairs = [
        (e.toxic, reference) for examples in made.values() for e in examples for reference in e.references
    ]
    limit = preflight.recipe.trl["max_length"]
    with (folder / "rows" / "train.jsonl").open("w") as stream:
        for (toxic, reference), length in zip(pairs, train.lengths, strict=True):
            if limit is None or length <= limit:
                stream.write(json.dumps({"prompt": format_prompt(toxic), "completion": reference}) + "\n")
    (folder / "rows.json").write_text(json.dumps(list(train.rows)))
    exported = yaml.safe_load(export_trl(preflight.recipe))
    exported |= {"output_dir": str(folder / "trl"), "dataset_name": str(folder / "rows")}
    (folder / "trl.yaml").write_text(yaml.safe_dump(exported))
    return {
        "arguments": [*words, "--output_dir", str(folder / "run")],
        "config": str(folder / "trl.yaml"),
        "rows": str(folder / "rows.json"),
        "held_out": list(preflight.tokens["validation"].rows)[: arguments.held_out],
        "end": preflight.tokenizer.eos_token_id,
        "warmup": arguments.warmup,
    }


def print_table(figures: dict[str, Any]) -> str:
    """Return the medians as a Markdown table; ratios are this project's speed over each side's."""
    ours = figures["medians"].get(SIDES[0], {}).get("samples_per_second")
    shape = figures["shape"] + (f", {figures['layers']} layers" if figures["layers"] else "")
    counted = f"steps {figures['warmup'] + 1} to {figures['steps']}, medians of {max(map(len, figures['runs'].values()))}"
    lines = [
        f"Shape {shape}, {figures['bits']} bit, batch {figures['batch']}, {figures['data']}; {counted}.",
        "",
        f"| | {' | '.join(COLUMNS.values())} | {EPOCH:,} pairs | this project is |",
        "|---|" + "---:|" * (len(COLUMNS) + 2),
    ]
    for side, values in figures["medians"].items():
        if not values:
            lines.append(f"| {side} | failed: {figures['failures'][side]} |")
            continue
        cells = [f"{values[key]:.4g}" if key != "held_out_loss" else f"{values[key]:.3f}" for key in COLUMNS]
        speed = values["samples_per_second"]
        ratio = f"{ours / speed:.2f} x" if ours and side != SIDES[0] else ""
        lines.append(f"| {side} | {' | '.join(cells)} | {EPOCH / speed:.0f} s | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
