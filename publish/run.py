"""Prepare a run for the Hub: python -m publish.run RUN_DIR"""

import argparse

from eval.report import print_results
from publish.plan import print_plan, write_publish_folder
from sft.recipe import run_command
from sft.run_dir import open_run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m publish.run",
        description="Write RUN_DIR/publish: the model card and exactly the files that a push would commit. Nothing is sent.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a finished and evaluated run, such as runs/tiny")
    run = open_run(parser.parse_args().run_dir)
    print_plan(run, write_publish_folder(run))
    print_results(run, run.eval)


if __name__ == "__main__":
    run_command(main)
