"""Generation speed, side by side: python tests/benchmarks/generate.py RUN_DIR

Two ways to rewrite the first test sentences of a finished run, in turn, each time in a fresh process: this project's, as
`eval/run.py` does it, and the report's, one sentence at a time through the quantised model with its adapter, up to 200
new tokens, greedy. Models are loaded before the clock starts. The report's way gets fewer sentences, as it is slow. Random
weights end no answer by themselves: --forced_end.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import sides

from sft.command import parse_count

SIDES = ("this project", "report")
NEW_TOKENS = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN_DIR", type=Path)
    parser.add_argument("--sentences", type=parse_count, default=600)
    parser.add_argument("--report_sentences", type=parse_count, default=40)
    parser.add_argument("--beams", type=parse_count, default=1, help="of this project; the report is greedy")
    parser.add_argument(
        "--batch_size", type=parse_count, help="eval.batch_size of this project, in place of the recipe's"
    )
    parser.add_argument("--no_prefix_caching", action="store_true", help="of this project")
    parser.add_argument(
        "--in_16_bit", action="store_true", help="this project's base, whatever the recipe says"
    )
    parser.add_argument(
        "--static_cache",
        action="store_true",
        help="of this project; on a GPU a base in 16 bit is compiled for it",
    )
    parser.add_argument(
        "--forced_end", action="store_true", help="for random weights: an answer is as long as its sentence"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--repeats", type=parse_count, default=3)
    parser.add_argument("--out", type=Path, default=sides.FIGURES)
    parser.add_argument(
        "--time", type=Path, help=argparse.SUPPRESS
    )  # the fresh process's own arguments: where it writes
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.time:
        arguments.time.write_text(json.dumps(time_generation(arguments)))
        return
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in arguments.sides}
    work = sides.make_work_folder()
    for turn in range(arguments.repeats):
        for side, values in runs.items():
            out = work / "generate.json"
            words = [
                "tests/benchmarks/generate.py",
                str(arguments.run.resolve()),
                "--side",
                side,
                "--time",
                str(out),
            ]
            words += [
                "--sentences",
                str(arguments.sentences),
                "--report_sentences",
                str(arguments.report_sentences),
            ]
            words += ["--beams", str(arguments.beams)] + ["--static_cache"] * arguments.static_cache
            words += ["--no_prefix_caching"] * arguments.no_prefix_caching
            words += ["--in_16_bit"] * arguments.in_16_bit + ["--forced_end"] * arguments.forced_end
            words += ["--batch_size", str(arguments.batch_size)] if arguments.batch_size else []
            if failure := sides.run_fresh(words, work / "generate.log"):
                sys.exit(failure)
            values.append(json.loads(out.read_text()))
            print(f"{turn + 1}/{arguments.repeats} {side}: {values[-1]}", flush=True)
    import torch

    from eval.adapter import open_adapter
    from sft.run_dir import open_run

    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter = open_adapter(open_run(str(arguments.run)))
    shape, layers = sides.name_shape(adapter.base)
    figures: dict[str, Any] = {
        "machine": sides.describe_machine(device),
        "shape": shape,
        "layers": layers,
        "device": device,
        "beams": arguments.beams,
        "batch_size": arguments.batch_size or adapter.settings.batch_size,
        "prefix_caching": not (arguments.no_prefix_caching or arguments.static_cache),
        "in_16_bit": arguments.in_16_bit,
        "static_cache": arguments.static_cache,
        "forced_end": arguments.forced_end,
        "runs": runs,
        "medians": {side: sides.median(values) for side, values in runs.items()},
    }
    name = f"{sides.name_figures(f'generate-{shape}', layers, device)}-{arguments.beams}"
    name += f"-batches-of-{arguments.batch_size}" if arguments.batch_size else ""
    name += "-no-prefix-caching" if arguments.no_prefix_caching else ""
    name += "-16-bit" if arguments.in_16_bit else ""
    name += "-static-cache" if arguments.static_cache else ""
    sides.write_figures(name, figures, print_table(figures), arguments.out)


def time_generation(arguments: argparse.Namespace) -> dict[str, float]:
    """Return sentences/s of one side, and new tokens a sentence."""
    import dataclasses

    from eval.adapter import open_adapter
    from eval.generate import load_rewriter
    from sft.run_dir import open_run

    run = open_run(str(arguments.run))
    texts = [example.toxic for example in run.splits["test"]]
    adapter = open_adapter(run)
    if arguments.side == "report":
        texts = texts[: arguments.report_sentences]
        begin, tokens = time_report(adapter, texts, arguments.forced_end)
    else:
        texts = texts[: arguments.sentences]
        changed: dict[str, Any] = {"num_beams": arguments.beams}
        changed |= {"batch_size": arguments.batch_size} if arguments.batch_size else {}
        if arguments.no_prefix_caching or arguments.static_cache:  # which does not grow, as the prefix's must
            changed["prefix_caching"] = False
        adapter = dataclasses.replace(adapter, settings=dataclasses.replace(adapter.settings, **changed))
        if arguments.in_16_bit:
            bits = {"load_in_4bit": False, "load_in_8bit": False}
            adapter = dataclasses.replace(adapter, quantization=adapter.quantization | bits)
        rewriter = load_rewriter(adapter)
        rewriter.model.generation_config.cache_implementation = "static" if arguments.static_cache else None
        processors = [ForcedEnd(rewriter.tokenizer)] if arguments.forced_end else []
        counts = count_tokens(rewriter.model, rewriter.tokenizer.eos_token_id, processors)
        begin = time.perf_counter()
        rewriter.rewrite(texts)
        tokens = sum(counts)
    seconds = time.perf_counter() - begin
    return {
        "sentences_per_second": len(texts) / seconds,
        "seconds": seconds,
        "tokens_per_sentence": tokens / len(texts),
    }


def count_tokens(model: Any, end: int, processors: list[Any]) -> list[int]:
    """Return a list that gets, from each `generate` of this model, the number of tokens of its answers and ends.

    These logits processors take part in it.
    """
    counts: list[int] = []
    generate = model.generate

    def counted(**options: Any) -> Any:
        if options["max_new_tokens"] == 1:  # it fills a cache
            return generate(**options)
        output = generate(**options, logits_processor=processors)
        answers = output.sequences[:, options["input_ids"].shape[1] :]
        ended = (answers == end).cumsum(1)
        counts.append(int((ended - (answers == end).long() == 0).sum()))  # up to the first end
        return output

    model.generate = counted
    return counts


class ForcedEnd:
    """A logits processor that ends an answer, and not before, when it has as many tokens as its sentence."""

    def __init__(self, tokenizer: Any) -> None:
        from sft.prompt import format_prompt

        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.frame = len(tokenizer(format_prompt(""))["input_ids"])
        self.width = self.last = 0  # of the prompts, and of the ids of the call before

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores (rows, vocabulary) for input_ids (rows, tokens): prompts padded on the left, and what follows them."""
        if input_ids.shape[1] != self.last + 1:  # a new batch
            self.width = input_ids.shape[1]
        self.last = input_ids.shape[1]
        sentences = (input_ids[:, : self.width] != self.pad).sum(1) - self.frame
        ended = self.last - self.width >= sentences
        scores = scores.clone()
        scores[:, self.end] = float("-inf")
        scores[ended] = float("-inf")
        scores[ended, self.end] = 0
        return scores


def time_report(adapter: Any, texts: list[str], forced_end: bool) -> tuple[float, int]:
    """Rewrite one sentence at a time; return when it began, and the number of new tokens."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl import ModelConfig, get_quantization_config

    from sft.machine import join_processes
    from sft.model import load_tokenizer
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
        processors = [ForcedEnd(tokenizer)] if forced_end else []
        with torch.inference_mode():
            options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "use_cache": True}
            output = model.generate(**inputs, **options, logits_processor=processors)
        tokens += output.shape[1] - inputs["input_ids"].shape[1]
    return begin, tokens


def print_table(figures: dict[str, Any]) -> str:
    medians = figures["medians"]
    ours = medians.get(SIDES[0], {}).get("sentences_per_second")
    shape = figures["shape"] + (f", {figures['layers']} layers" if figures["layers"] else "")
    repeats = max(map(len, figures["runs"].values()))
    cache = (", in 16 bit" if figures["in_16_bit"] else "") + (
        ", a static cache" if figures["static_cache"] else ""
    )
    settings = f"{figures['beams']} beam(s), batches of {figures['batch_size']}{cache}"
    settings += "" if figures["prefix_caching"] else ", no prefix caching"
    settings += "; answers ended at the length of their sentences" if figures["forced_end"] else ""
    lines = [
        f"Shape {shape}; medians of {repeats}; this project with {settings}.",
        "",
        "| | sentences/s | 600 sentences | new tokens a sentence | this project is |",
        "|---|---:|---:|---:|---:|",
    ]
    for side, values in medians.items():
        speed = values["sentences_per_second"]
        ratio = f"{ours / speed:.1f} x" if ours and side != SIDES[0] else ""
        lines.append(
            f"| {side} | {speed:.2f} | {600 / speed:.1f} s | {values['tokens_per_sentence']:.1f} | {ratio} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
