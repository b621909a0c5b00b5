"""Train an adapter: accelerate launch sft/run.py recipes/tiny.yaml [--key value …]"""

import argparse
import json

from sft.command import explain_shortage, run_command, tell_once
from sft.preflight import AUTO_BATCH, inspect_recipe
from sft.recipe import parse_command
from sft.run_dir import hold_run
from sft.storage import hash_file
from sft.terminal import Terminal

RESUME = "start if no run is there, go on if one was interrupted, end with 0 if it is finished"
GO_ON = "The same command with --resume_from_checkpoint true goes on from the last checkpoint."
ELASTIC = "go on with another number of processes, and the same batch a step: no longer the same bytes"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="accelerate launch sft/run.py", description="Train the adapter of a recipe."
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--overwrite", action="store_true", help="replace the run that is in the run directory"
    )
    begin.add_argument("--resume", choices=["auto"], help=RESUME)
    parser.add_argument("--elastic", action="store_true", help=ELASTIC)
    parser.add_argument(
        "--json", action="store_true", help="progress to standard error, and at the end one JSON object"
    )
    parser.add_argument("--auto_batch", action="store_true", help=AUTO_BATCH)
    arguments, words = parse_command(parser)
    if arguments.resume:
        words += ["--resume_from_checkpoint", "true"]
    preflight = inspect_recipe(arguments.recipe, words, arguments.auto_batch, arguments.overwrite)

    from sft.model import load_base, save_adapter
    from sft.preemption import Preemption, explain_losses
    from sft.rehearsal import rehearse
    from sft.train import (
        agree_on_start,
        build_trainer,
        choose_run,
        find_start,
        is_done,
        open_run_dir,
        record_training,
        settle_run,
    )

    run = choose_run(preflight, arguments.overwrite)
    console = Terminal(stderr=arguments.json)
    if arguments.resume and is_done(run, preflight):
        tell_once(f"{run.root}: finished already, nothing is changed")
        return
    checkpoint = find_start(run, preflight, arguments.overwrite, arguments.elastic)
    agree_on_start(run, checkpoint)
    rehearse(preflight)
    if preflight.machine.processes.is_main_process:
        for note in preflight.list_notes():
            console.print(note, style="yellow")
    preemption = Preemption()
    with explain_shortage(run.root, GO_ON), hold_run(run), preemption.catch_signals(), explain_losses():
        model = load_base(preflight.recipe, preflight.base)
        trainer = build_trainer(preflight, model, run, checkpoint, console)
        trainer.add_callback(preemption)
        open_run_dir(run, preflight, checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        preemption.end_training(trainer, run)
        record_training(trainer, run, preflight.machine)
        save_adapter(trainer, run, preflight.base)
        run = settle_run(run, preflight)
    if arguments.json:
        done = {"run_dir": str(run.root), "adapter": {"sha256": hash_file(run.adapter_weights)}}
        trainer.accelerator.print(json.dumps(done | run.environment["training"]))
    else:
        trainer.accelerator.print(f"adapter: {run.adapter}\nnext: accelerate launch eval/run.py {run.root}")
    trainer.end()


if __name__ == "__main__":
    run_command(main)
