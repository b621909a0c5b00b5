"""Generation speed, side by side: python tests/benchmarks/generate.py RUN_DIR

Two ways to rewrite the first test sentences of a finished run, in turn, each time in a fresh process: this project's, as
`eval/run.py` does it, and the report's, one sentence at a time through the quantised model with its adapter, up to 200
new tokens, greedy. Models are loaded before the clock starts. The report's way gets fewer sentences, as it is slow.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import sides

from sft.recipe import parse_count

SIDES = ("this project", "report")
NEW_TOKENS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN_DIR", type=Path)
    parser.add_argument("--sentences", type=parse_count, default=600)
    parser.add_argument("--report_sentences", type=parse_count, default=40)
    parser.add_argument("--beams", type=parse_count, default=1, help="of this project; the report is greedy")
    parser.add_argument("--repeats", type=parse_count, default=3)
    parser.add_argument("--out", type=Path, default=sides.FIGURES)
    parser.add_argument("--time", type=Path, help=argparse.SUPPRESS)  # the fresh process's own arguments: where it writes
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.time:
        arguments.time.write_text(json.dumps(time_generation(arguments)))
        return
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    work = sides.make_work_folder()
    for turn in range(arguments.repeats):
        for side, values in runs.items():
            out = work / "generate.json"
            words = ["tests/benchmarks/generate.py", str(arguments.run.resolve()), "--side", side, "--time", str(out)]
            words += ["--sentences", str(arguments.sentences), "--report_sentences", str(arguments.report_sentences)]
            words += ["--beams", str(arguments.beams)]
            if failure := sides.run_fresh(words, work / "generate.log"):
                sys.exit(failure)
            values.append(json.loads(out.read_text()))
            print(f"{turn + 1}/{arguments.repeats} {side}: {values[-1]}", flush=True)
    import torch

    from eval.generate import open_adapter
    from sft.run_dir import open_run

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, layers = sides.name_shape(open_adapter(open_run(str(arguments.run))).base)
    figures: dict[str, Any] = {
        "machine": sides.describe_machine(device),
        "shape": shape,
        "layers": layers,
        "device": device,
        "beams": arguments.beams,
        "runs": runs,
        "medians": {side: sides.median(values) for side, values in runs.items()},
    }
    name = f"{sides.name_figures(f'generate-{shape}', layers, device)}-{arguments.beams}"
    sides.write_figures(name, figures, print_table(figures), arguments.out)


def time_generation(arguments: argparse.Namespace) -> dict[str, float]:
    """Return sentences/s of one side, and new tokens a sentence."""
    import dataclasses

    from eval.generate import load_rewriter, open_adapter
    from eval.rows import read_split
    from sft.run_dir import open_run

    run = open_run(str(arguments.run))
    texts = [example.toxic for example in read_split(run, "test")]
    adapter = open_adapter(run)
    if arguments.side == "report":
        texts = texts[: arguments.report_sentences]
        begin, tokens = time_report(adapter, texts)
    else:
        texts = texts[: arguments.sentences]
        adapter = dataclasses.replace(adapter, settings=dataclasses.replace(adapter.settings, num_beams=arguments.beams))
        rewriter = load_rewriter(adapter)
        begin = time.perf_counter()
        rewrites = rewriter.rewrite(texts)
        tokens = sum(map(len, rewriter.tokenizer(rewrites)["input_ids"]))
    seconds = time.perf_counter() - begin
    return {"sentences_per_second": len(texts) / seconds, "seconds": seconds, "tokens_per_sentence": tokens / len(texts)}


def time_report(adapter: Any, texts: list[str]) -> tuple[float, int]:
    """Rewrite one sentence at a time; return when it began, and the number of new tokens."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl import ModelConfig, get_quantization_config

    from sft.model import join_processes, load_tokenizer
    from sft.prompt import format_prompt

    device = join_processes().device
    model = AutoModelForCausalLM.from_pretrained(
        adapter.base.path,
        revision=adapter.base.revision,
        dtype=adapter.quantization["dtype"],
        quantization_config=get_quantization_config(ModelConfig(**adapter.quantization)),
        device_map={"": device},
    )
    model = PeftModel.from_pretrained(model, str(adapter.folder)).eval()
    tokenizer = load_tokenizer(adapter.base, **adapter.tokens)
    begin, tokens = time.perf_counter(), 0
    for text in texts:
        inputs = tokenizer(format_prompt(text), return_tensors="pt").to(device)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True)
        tokens += output.shape[1] - inputs["input_ids"].shape[1]
    return begin, tokens


def print_table(figures: dict[str, Any]) -> str:
    medians = figures["medians"]
    ours = medians[SIDES[0]]["sentences_per_second"]
    shape = figures["shape"] + (f", {figures['layers']} layers" if figures["layers"] else "")
    repeats = len(figures["runs"][SIDES[0]])
    lines = [
        f"Shape {shape}; medians of {repeats}; this project with {figures['beams']} beam(s).",
        "",
        "| | sentences/s | 600 sentences | new tokens a sentence | this project is |",
        "|---|---:|---:|---:|---:|",
    ]
    for side, values in medians.items():
        speed = values["sentences_per_second"]
        ratio = f"{ours / speed:.1f} x" if side != SIDES[0] else ""
        lines.append(f"| {side} | {speed:.2f} | {600 / speed:.1f} s | {values['tokens_per_sentence']:.1f} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
