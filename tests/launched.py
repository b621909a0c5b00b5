"""Run by a launcher's processes: a run trained whole, one preempted and resumed, and an evaluation, in one start.

    accelerate launch … tests/launched.py FOLDER ARGUMENT…   (arguments of sft/run.py)

Each process writes what it saw to FOLDER/rank<N>.json: the messages of the runs that were ended, and the files
that it opened for writing below FOLDER.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import eval.run
import sft.run
from sft.preemption import Preempted

ROOT, ARGUMENTS = Path(sys.argv[1]).resolve(), sys.argv[2:]
RANK = int(os.environ["RANK"])
written: list[str] = []


def note_writing(event: str, details: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(details[0], str) and details[2] & (os.O_WRONLY | os.O_RDWR):
        path = Path(details[0]).absolute()
        if path.is_relative_to(ROOT):
            written.append(str(path.relative_to(ROOT)))


def call(module: Any, *arguments: object) -> None:
    with mock.patch("sys.argv", ["run.py", *map(str, arguments)]):
        module.main()


def preempt(*words: Any, **_: Any) -> None:
    if RANK == 1 and words[2].global_step == 2:
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    messages = []
    call(sft.run, *ARGUMENTS, "--output_dir", ROOT / "whole")
    for name in ("resumed", "left"):  # the latter goes on elsewhere, on another number of processes
        try:
            with mock.patch("sft.preemption.Preemption.on_step_begin", preempt):
                call(sft.run, *ARGUMENTS, "--output_dir", ROOT / name, "--resume", "auto")
        except Preempted as error:
            messages.append(str(error))
    call(sft.run, *ARGUMENTS, "--output_dir", ROOT / "resumed", "--resume", "auto")
    unset_hf_deepspeed_config()  # an evaluation, in processes of its own, would not find a training's settings
    call(eval.run, ROOT / "whole")
    (ROOT / f"rank{RANK}.json").write_text(json.dumps({"messages": messages, "written": written}))


if __name__ == "__main__":
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False  # takes minutes to compile; gloo does as well
    sys.addaudithook(note_writing)
    # Each training ends with the processes' connections; here the next one still needs them.
    with mock.patch("torch.distributed.destroy_process_group"):
        main()
