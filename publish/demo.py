"""A page to try an adapter on, here or as a Space.

python -m publish.demo RUN_DIR_OR_HUB_ID [--space OWNER/NAME --push]
"""

import argparse
import dataclasses
import importlib.metadata
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from publish.card import BEGIN, END, split_card
from publish.folder import describe_files
from publish.hub import Remote, Target, call_again, check_online, connect, explain_failure, list_errors
from publish.licence import LICENSE_ID
from publish.push import plan_push, push
from publish.run import check_repo_id, describe_push
from publish.scan import refuse_private
from sft.command import InputError, Refusal, parse_count, run_command
from sft.hub import HubFailure, explain_errors
from sft.recipe import dump_yaml

if TYPE_CHECKING:
    from huggingface_hub import HfApi

APP = Path(__file__).parent / "app.py"
STANDALONE = Path(__file__).parent.parent / "eval" / "standalone.py"
REQUIREMENTS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "huggingface-hub")
SPACE_CARD = """---
{metadata}---

{begin}

Try [{adapter}](https://huggingface.co/{adapter}), a LoRA adapter that rewrites a toxic sentence so that it \
keeps its
meaning and loses its toxicity. How well it does is on its card.

{end}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m publish.demo",
        description="Serve a page to try an adapter on: "
        "type or choose a sentence, see its rewrite with the differences marked. "
        "With --space, plan the same page as a Gradio Space, and with --push, commit it. "
        "Exit status: 0 done, 2 bad input, 3 refused by a check, 4 the Hub failed.",
    )
    parser.add_argument(
        "adapter", metavar="RUN_DIR_OR_HUB_ID", help="a finished run, or a published adapter's Hub id"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on; 0.0.0.0 for other machines too"
    )
    parser.add_argument("--port", type=parse_count, default=7860)
    parser.add_argument(
        "--space", metavar="OWNER/NAME", help="plan a Space for a published adapter instead of serving a page"
    )
    parser.add_argument("--push", action="store_true", help="with --space: send it")
    parser.add_argument(
        "--public", action="store_true", help="with --space: make a new Space public (default: private)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: the page's address, or the Space's plan"
    )
    arguments = parser.parse_args()
    if arguments.push and not arguments.space:
        parser.error("--push needs --space OWNER/NAME")
    if arguments.space:
        publish_space(arguments)
    else:
        serve(arguments)


def serve(arguments: argparse.Namespace) -> None:
    """Serve the page until it is interrupted."""
    try:
        from publish.app import LARGEST_UPLOAD, build_app
    except ImportError as error:
        raise InputError(
            f"{error.name} is not installed. Install the demo's libraries: pip install -e '.[demo]'"
        ) from None
    from eval.adapter import find_adapter
    from eval.generate import load_rewriter

    adapter = find_adapter(arguments.adapter)
    rewriter = load_rewriter(adapter)
    app = build_app(
        lambda text: rewriter.rewrite([text])[0],
        find_results(arguments.adapter, adapter.folder),
        arguments.adapter,
    )
    where = {"server_name": arguments.host, "server_port": arguments.port, "inbrowser": False}
    where |= {"max_file_size": LARGEST_UPLOAD}
    try:
        _, address, _ = app.launch(**where, quiet=arguments.json, prevent_thread_lock=arguments.json)
    except OSError:
        raise InputError(f"--port: {arguments.port} is in use. Name another.") from None
    if arguments.json:
        print(json.dumps({"adapter": arguments.adapter, "address": address}), flush=True)
        threading.Event().wait()


def find_results(name: str, folder: Path) -> dict[str, Any] | None:
    """Return the content of results.json: of a run, if it is evaluated already, or of a download."""
    path = Path(name) / "eval" / "results.json" if Path(name).is_dir() else folder / "results.json"
    if not path.is_file():
        return None
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def build_space(adapter: str, results: dict[str, Any], license: Any, title: str) -> dict[str, bytes]:
    """Return the Space's files; `license` is what the adapter's card has in its metadata."""
    base = results["base"]
    if base["revision"] is None:
        raise InputError(f"{adapter}: its base, {base['name']}, is not on the Hub, so a Space can't load it.")
    metadata: dict[str, Any] = {
        "title": title,
        "emoji": "🧼",
        "colorFrom": "green",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": importlib.metadata.version("gradio"),
        "app_file": "app.py",
        "models": [adapter, base["name"]],
    }
    metadata |= {"license": license} if isinstance(license, str) and LICENSE_ID.fullmatch(license) else {}
    card = SPACE_CARD.format(metadata=dump_yaml(metadata), begin=BEGIN, end=END, adapter=adapter)
    app = APP.read_text(encoding="utf-8").replace('ADAPTER = ""', f"ADAPTER = {json.dumps(adapter)}", 1)
    pins = "".join(f"{name}=={importlib.metadata.version(name).partition('+')[0]}\n" for name in REQUIREMENTS)
    return {
        "README.md": card.encode(),
        "app.py": app.encode(),
        "standalone.py": STANDALONE.read_bytes(),
        "requirements.txt": pins.encode(),
    }


def publish_space(arguments: argparse.Namespace) -> None:
    """Plan, and with --push commit, the Space of a published adapter."""
    from huggingface_hub import hf_hub_download

    from eval.adapter import download_adapter

    check_repo_id(arguments.space)
    check_online()
    if Path(arguments.adapter).is_dir():
        raise InputError(
            f"{arguments.adapter}: a Space loads its adapter from the Hub. "
            "Push the run first, and name its Hub id."
        )
    try:
        folder = download_adapter(arguments.adapter).folder
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        with explain_errors(arguments.adapter, "adapter"):
            card = Path(hf_hub_download(arguments.adapter, "README.md", revision=folder.name)).read_text(
                encoding="utf-8"
            )
        files = build_space(
            arguments.adapter, results, split_card(card)[0].get("license"), arguments.space.partition("/")[2]
        )
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed. Install the demo's libraries: pip install -e '.[demo]'"
        ) from None
    refuse_private(files, arguments.space.partition("/")[0])
    target = Target(arguments.space, private=False if arguments.public else None, kind="space", sdk="gradio")
    api = connect()
    plan = plan_push(api, files, target)
    secret = find_secret(api, arguments.adapter, target, plan.remote)
    report: dict[str, Any] = {
        "files": describe_files(files),
        "repo_id": arguments.space,
        "pushed": False,
        "secret": secret,
    }
    report |= plan.describe()
    if not arguments.json:
        plan.print(target)
    if arguments.push:
        outcome = push(api, files, target, f"Demo of {arguments.adapter}")
        report |= dataclasses.asdict(outcome) | {"pushed": True}
    if arguments.json:
        print(json.dumps(report))
        return
    if secret:
        place = f"{api.endpoint}/spaces/{arguments.space}/settings"
        print(
            f"{arguments.adapter} is private: "
            f"set the Space's secret {secret}, a token that may read it, at {place}"
        )
    if report["pushed"]:
        print(describe_push(report))
    else:
        print("Nothing has left this machine. Send it with --push.")


def find_secret(api: "HfApi", adapter: str, target: Target, space: Remote) -> str | None:
    """Return the name of the secret that the Space needs to read its adapter, if it needs one.

    Raises:
        HubFailure: the Hub can't be reached.
        Refusal: the Space would show a private adapter to everybody.
    """
    try:
        private = call_again(lambda: api.repo_info(adapter)).private
    except list_errors() as error:
        raise HubFailure(f"{adapter}: {explain_failure(error, Target(adapter))} Nothing was sent.") from None
    if private and (target.private is False or space.private is False):
        raise Refusal(
            f"{adapter} is private, and {target.repo_id} is public: it would show the adapter to everybody. "
            "Make the adapter "
            "public in its settings on the Hub, or the Space private. Nothing was sent."
        )
    return "HF_TOKEN" if private else None


if __name__ == "__main__":
    run_command(main)
