"""The demo's page: also a Space's app.py, with the adapter's name put in and eval/standalone.py beside it."""

import difflib
import html
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

try:
    from eval.standalone import show
except ImportError:  # a Space has it beside this file
    from standalone import show  # type: ignore[no-redef]

ADAPTER = ""  # the Hub id, in a Space
LONGEST = 500  # characters
MOST_WAITING = (
    20  # requests; one is answered at a time, and who is told to come back need not wait for minutes
)
LARGEST_UPLOAD = 0  # bytes: nothing here takes a file
EXAMPLES = (
    "what the hell is wrong with this printer",
    "you are a stupid liar and everyone knows it",
    "this is shit and you know it",
    "Thanks for your help with the garden.",
)
LABELS = {
    "adapter": "this adapter",
    "base": "untuned base",
    "delete": "listed words cut",
    "copy": "input copied",
}
COLUMNS = {"bleu": "BLEU", "chrf": "chrF", "joint": "joint (0 to 1)"}


def mark_differences(text: str, rewrite: str) -> list[tuple[str, str | None]]:
    """Return the words of both in order, each run of them as "removed", "added", or None where in both."""
    before, after = text.split(), rewrite.split()
    marked: list[tuple[str, str | None]] = []
    for kind, first, last, start, end in difflib.SequenceMatcher(
        None, before, after, autojunk=False
    ).get_opcodes():
        if kind == "equal":
            marked.append((" ".join(before[first:last]), None))
            continue
        if last > first:
            marked.append((" ".join(before[first:last]), "removed"))
        if end > start:
            marked.append((" ".join(after[start:end]), "added"))
    return marked


def tabulate_scores(results: Mapping[str, Any]) -> str:
    """Return the scores of results.json as a Markdown table, each with its 95 % interval."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", f"|---|{'---:|' * len(COLUMNS)}"]
    systems = {
        label: results["systems"][system] for system, label in LABELS.items() if system in results["systems"]
    }
    if ceiling := results.get("ceiling"):
        # People's rewrites are compared with fewer references, which lowers scores: so is the adapter below.
        systems[f"people, on {ceiling['rows']:,} sentences"] = ceiling["systems"]["human"]
        systems[f"this adapter, on these {ceiling['rows']:,}"] = ceiling["systems"]["adapter"]
    for label, scores in systems.items():
        cells = [format_score(scores[key]) if key in scores else "" for key in COLUMNS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    rows = (
        f"On {results['data']['rows']:,} held-out sentences of {escape(results['data']['source'])}, "
        "with 95 % intervals."
    )
    return "\n".join([rows, "", *lines])


def format_score(score: Mapping[str, float]) -> str:
    digits = 1 if score["value"] > 1 else 3
    return f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def describe_quantization(how: Mapping[str, Any]) -> str:
    return "4 bit" if how["load_in_4bit"] else "8 bit" if how["load_in_8bit"] else "not quantised"


def describe_settings(results: Mapping[str, Any]) -> str:
    """Return how the answers are made, as a Markdown list."""
    generation, base = results["generation"], results["base"]
    commit = f", commit {escape(base['revision'])}" if base["revision"] else ""
    beams = "greedy" if generation["num_beams"] == 1 else f"{escape(generation['num_beams'])} beams"
    prompt = escape("⏎".join(results["prompt"].split("\n")))
    return "\n".join(
        (
            f"- base: {escape(base['name'])}{commit}, {describe_quantization(results['quantization'])}",
            f"- adapter: SHA-256 {escape(results['adapter']['sha256'])}",
            f"- {beams}, at most {escape(generation['max_new_tokens'])} new tokens",
            f"- prompt: {prompt}",
        )
    )


def escape(value: object) -> str:
    """Return a value as one line that renders as itself in Markdown, as eval.report.escape_markdown does."""
    line = html.escape(show(" ".join(str(value).split())), quote=False)
    markup = r"[\\`*{}\[\]#|~$@^]|_(?![^\W_])|(?<![^\W_])_"
    line = re.sub(markup, lambda match: f"&#{ord(match[0])};", line)
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;")
    return line or "&nbsp;"


def build_app(rewrite: Callable[[str], str], results: Mapping[str, Any] | None, title: str) -> gr.Blocks:
    """Return the page: a sentence in; its rewrite, and what has changed, out."""

    def answer(text: str) -> tuple[str, list[tuple[str, str | None]], str]:
        text = " ".join(text.split())
        if not text:
            return "", [], "Type a sentence first, or choose one below."
        if len(text) > LONGEST:
            return (
                "",
                [],
                f"Found {len(text):,} characters, expected at most {LONGEST}. "
                "Give a sentence or two at a time.",
            )
        found = rewrite(text)
        note = (
            "The same words as before."
            if found.split() == text.split()
            else "The answer is empty."
            if not found
            else ""
        )
        return found, mark_differences(text, found), note

    with gr.Blocks(title=title, analytics_enabled=False) as app:
        gr.Markdown(
            f"# {escape(title)}\nRewrites a toxic sentence so that it keeps its meaning and loses its "
            "toxicity. It can fail."
        )
        text = gr.Textbox(
            label="Sentence", placeholder="what the hell is wrong with this printer", lines=2, elem_id="text"
        )
        button = gr.Button("Rewrite", variant="primary", elem_id="go")
        note = gr.Markdown(elem_id="note")
        found = gr.Textbox(label="Rewritten", lines=2, interactive=False, elem_id="rewritten")
        colours = {"removed": "#f4a3a3", "added": "#9fd8a4"}
        changed = gr.HighlightedText(
            label="What has changed",
            combine_adjacent=False,
            show_legend=True,
            color_map=colours,
            elem_id="changed",
        )
        gr.Examples([[example] for example in EXAMPLES], inputs=[text])
        if results:
            with gr.Accordion("Scores", open=False):
                gr.Markdown(tabulate_scores(results))
            with gr.Accordion("Settings", open=False):
                gr.Markdown(describe_settings(results))
        outputs = [found, changed, note]
        gr.on([button.click, text.submit], answer, [text], outputs, api_name="rewrite", concurrency_limit=1)
    return app.queue(max_size=MOST_WAITING, api_open=False)


def load_from_hub(adapter: str) -> tuple[Callable[[str], str], Mapping[str, Any]]:
    """Return a function that rewrites, and results.json, of a published adapter."""
    from standalone import load_published  # a Space has it beside this file

    published = load_published(adapter)
    return published.rewrite, published.results


if __name__ == "__main__":
    build_app(*load_from_hub(ADAPTER), title=ADAPTER).launch(max_file_size=LARGEST_UPLOAD)
