"""Plan a run's way to the Hub, or push it: python -m publish.run RUN_DIR [--push]"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

from eval.report import print_report
from eval.results import RESULTS, Results
from publish.folder import describe_files, print_plan, write_publish_folder
from publish.hub import TRIES, Target, connect
from publish.push import plan_push, push
from sft.command import InputError, explain_shortage, run_command
from sft.hub import HubFailure, first_line
from sft.run_dir import Run, share_run
from sft.storage import read_json_lines


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m publish.run",
        description="Write RUN_DIR/publish: the model card and exactly the files of a push; "
        "with --push, commit them to the Hub. "
        "Exit status: 0 done, 2 bad input, 3 refused by a check, 4 the Hub failed.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a finished and evaluated run, such as runs/tiny")
    parser.add_argument(
        "--push", action="store_true", help="send it: one commit, verified; without this nothing is sent"
    )
    parser.add_argument("--repo_id", help="OWNER/NAME on the Hub (default: the recipe's publish.repo_id)")
    parser.add_argument(
        "--revision", default="main", metavar="BRANCH", help="branch to commit to, made where there is none"
    )
    parser.add_argument(
        "--pr", action="store_true", help="open a pull request instead of committing to the branch"
    )
    parser.add_argument(
        "--merged",
        action="store_true",
        help="also publish the model merged into 16-bit weights, checked on the test split",
    )
    parser.add_argument("--tag", help="tag the verified commit, e.g. v1")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private",
        action="store_true",
        default=None,
        help="for a new repository (default: as in the recipe)",
    )
    visibility.add_argument("--public", dest="private", action="store_false", help="for a new repository")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args()
    if arguments.pr and arguments.tag:
        parser.error("--tag needs a commit on a branch; a pull request is tagged when it is merged")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    with share_run(arguments.run_dir) as run, explain_shortage(run.publish):
        publish(run, arguments)


def publish(run: Run, arguments: argparse.Namespace) -> None:
    settings = run.recipe.publish
    repo_id = arguments.repo_id or settings.repo_id
    if arguments.push and not repo_id:
        raise InputError(
            "no repository is named. Expected --repo_id OWNER/NAME, or publish.repo_id in the recipe."
        )
    if repo_id:
        check_repo_id(repo_id)
    paths = write_publish_folder(run, repo_id, arguments.merged)
    files = {path.relative_to(run.publish).as_posix(): path.read_bytes() for path in paths}
    results = Results.from_json(files[RESULTS], run.publish / RESULTS)
    report: dict[str, Any] = {
        "folder": str(run.publish),
        "files": describe_files(files),
        "repo_id": repo_id,
        "pushed": False,
    }
    if not arguments.json:
        print_plan(run, files)
    if repo_id:
        target = Target(
            repo_id, arguments.revision, arguments.private, settings.private, arguments.pr, arguments.tag
        )
        report |= reach_hub(files, target, results, arguments)
    if arguments.json:
        print(json.dumps(report))
        return
    print_report(run, run.eval, results, read_json_lines(run.eval / "predictions.jsonl"))
    if report["pushed"]:
        print(describe_push(report))
    else:
        name = repo_id or "OWNER/NAME"
        print(
            "Nothing has left this machine. "
            f"Send it with: python -m publish.run {run.root} --push --repo_id {name}"
        )


def describe_push(report: Mapping[str, Any]) -> str:
    return (
        f"{'committed' if report['committed'] else 'all of it was there already'}, and verified: "
        f"{report['url']}"
    )


def check_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"--repo_id: {first_line(error)}") from None
    if "/" not in repo_id:
        raise InputError(f"--repo_id: found {repo_id!r}, expected OWNER/NAME, such as me/{repo_id}.")


def reach_hub(
    files: Mapping[str, bytes], target: Target, results: Results, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Compare with the repository, push if asked to, and return what the report says of it.

    Without --push a Hub out of reach is no failure: the plan then stands without the comparison.
    """
    api = connect()
    try:
        plan = plan_push(api, files, target, tries=TRIES if arguments.push else 1)
    except HubFailure as error:
        if arguments.push:
            raise
        print(f"not compared with the Hub. {error}", file=sys.stderr)
        return {"hub": str(error)}
    if not arguments.json:
        plan.print(target)
    if not arguments.push:
        return plan.describe()
    bleu = results.systems["adapter"]["bleu"].value
    outcome = push(api, files, target, f"Adapter {results.adapter.sha256[:12]}, BLEU {bleu:.1f}")
    return plan.describe() | dataclasses.asdict(outcome) | {"pushed": True, "tag": arguments.tag}


if __name__ == "__main__":
    run_command(main)
