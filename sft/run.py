"""Train an adapter: accelerate launch sft/run.py recipes/tiny.yaml [--key value …]"""

import argparse
import json

from rich.console import Console

from sft.command import run_command
from sft.preflight import AUTO_BATCH, inspect_recipe
from sft.recipe import parse_command
from sft.run_dir import Run, hold_run
from sft.storage import hash_file


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="accelerate launch sft/run.py", description="Train the adapter of a recipe."
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run that is in the run directory"
    )
    parser.add_argument(
        "--json", action="store_true", help="progress to standard error, and at the end one JSON object"
    )
    parser.add_argument("--auto_batch", action="store_true", help=AUTO_BATCH)
    arguments, words = parse_command(parser)
    preflight = inspect_recipe(arguments.recipe, words, arguments.auto_batch, arguments.overwrite)

    from sft.model import load_base, save_adapter
    from sft.train import build_trainer, find_start, open_run_dir, record_training

    run = Run(preflight.recipe.output_dir)
    checkpoint = find_start(run, preflight, arguments.overwrite)
    console = Console(stderr=arguments.json)
    if preflight.machine.processes.is_main_process:
        for note in preflight.list_notes():
            console.print(note, style="yellow")
    with hold_run(run):
        model = load_base(preflight.recipe, preflight.base)
        trainer = build_trainer(preflight, model, run, checkpoint, console)
        open_run_dir(run, preflight, checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        record_training(trainer, run, preflight.machine)
        save_adapter(trainer, run, preflight.base)
    if arguments.json:
        done = {"run_dir": str(run.root), "adapter": {"sha256": hash_file(run.adapter_weights)}}
        trainer.accelerator.print(json.dumps(done | run.environment["training"]))
    else:
        trainer.accelerator.print(f"adapter: {run.adapter}\nnext: accelerate launch eval/run.py {run.root}")
    trainer.end()


if __name__ == "__main__":
    run_command(main)
