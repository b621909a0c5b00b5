"""The model card: facts of a run in, Markdown out. No network, no clock."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.report import escape_markdown
from eval.results import ProtocolScores, Scores, Slice, Unrewritten, parse_part
from eval.tables import (
    LABELS,
    SYSTEMS,
    describe_differences,
    format_interval,
    format_value,
    name_metrics,
    tabulate_protocol,
    tabulate_systems,
    tabulate_unrewritten,
)
from publish.licence import LICENSE_ID, LICENSES, has_license_text, is_rail
from sft.command import Refusal, count
from sft.prompt import format_prompt

if TYPE_CHECKING:
    import jinja2

BEGIN = "<!-- generated from here on: what is written above or below is kept -->"
END = "<!-- generated up to here -->"
KEYS = re.compile(
    r"\s*<!-- metadata keys set here: (.*) -->"
)  # follows BEGIN; what a later card no longer sets is dropped
TEMPLATE = Path(__file__).parent / "card.md.jinja"
SETTINGS = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "dtype", "lora_r",
    "lora_alpha", "lora_dropout", "lora_target_modules", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "optim",
    "weight_decay", "max_length", "bf16", "fp16", "seed",
)  # fmt: skip
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")
ENVIRONMENT = (
    "parameters",
    "training",
    "git_commit",
    "versions",
)  # keys of environment.json that card.json has
MANIFEST = ("source", "revision", "sha256", "splits", "leaks", "streaming", "cleaning", "targets")
SCORED = {
    "copy": "copying the input scores",
    "delete": "cutting its listed words",
    "base": "the untuned base",
}
SLICED = ("copy", "delete")
WITH_INTERVAL = ("bleu", "toxicity", "joint")  # in the table; with all of them it would be too wide to read
METRICS = LABELS | {
    "bleu_first": "BLEU, first reference",
    "bleu_lower": "BLEU, lower case",
    "rouge1_first": "ROUGE-1, first reference",
    "rouge2_first": "ROUGE-2, first reference",
    "rougeL_first": "ROUGE-L, first reference",
    "chrf_source": "chrF to the source",
    "copy_rate": "copy rate",
    "length_ratio": "length ratio",
}


@dataclass(frozen=True)
class CardFacts:
    """All that the card says: results.json and the recipe, and what `describe_record` returns."""

    name: str
    recipe: Mapping[str, Any]  # resolved values
    environment: Mapping[str, Any]
    manifest: Mapping[str, Any]
    results: Mapping[str, Any]
    samples: Sequence[Sequence[str]]  # toxic, rewritten, human; listed words masked
    examples: Sequence[Sequence[str]]  # text and rewrite, see `publish.samples.choose_examples`
    merged: Mapping[str, Any] | None = None  # see `publish.merge.write_merged`


def describe_record(facts: CardFacts) -> dict[str, Any]:
    """Return the content of card.json: what the card says and neither results.json nor the recipe does.

    With it, anybody can render the card again and compare (publish/verify.py).
    """
    hardware = {key: facts.environment["hardware"][key] for key in ("gpus", "cpu_count")}
    return {
        "name": facts.name,
        "repo_id": facts.recipe["publish"]["repo_id"],
        "environment": {key: facts.environment[key] for key in ENVIRONMENT} | {"hardware": hardware},
        "manifest": {key: facts.manifest[key] for key in MANIFEST if key in facts.manifest},
        "samples": facts.samples,
        "examples": facts.examples,
        "merged": facts.merged,
    }


def restore_facts(
    record: Mapping[str, Any], results: Mapping[str, Any], recipe: Mapping[str, Any]
) -> CardFacts:
    """Return the facts of a card.json, beside a results.json and a recipe's resolved values."""
    values = {**recipe, "publish": {**recipe["publish"], "repo_id": record["repo_id"]}}
    parts = (record[key] for key in ("samples", "examples", "merged"))
    return CardFacts(record["name"], values, record["environment"], record["manifest"], results, *parts)


def render_card(facts: CardFacts) -> str:
    """Return the card: YAML metadata, then text. A name that the template lacks is an error, not a blank.

    Every text that is not ours (samples, file names) passes through `escape_markdown`.

    Raises:
        Refusal: the Hub would not take the metadata.
    """
    results, publish = facts.results, facts.recipe["publish"]
    metadata = build_metadata(facts)
    keys = split_card(f"---\n{metadata}\n---\n")[0]
    if faults := find_metadata_faults(keys):
        raise Refusal("the Hub would refuse the card's metadata: " + "; ".join(faults))
    name = re.sub(r"[^\w.-]+", "-", facts.name)
    return load_template().render(
        begin=BEGIN,
        end=END,
        metadata=metadata,
        keys=list(keys),
        title=facts.name,
        repo_id=publish["repo_id"] or f"OWNER/{name}",
        base=results["base"],
        manifest=facts.manifest,
        environment=facts.environment,
        hardware=name_hardware(facts.environment["hardware"]),
        format_grams=format_grams,
        settings={
            key: format_setting(facts.recipe[key]) for key in SETTINGS if facts.recipe[key] is not None
        },
        scores_prompt=facts.recipe["completion_only_loss"] is False,
        example=next(iter(facts.examples), None),
        samples=facts.samples,
        prompt=format_prompt("TEXT"),
        tokens=results["tokens"],
        license=publish["license"],
        license_url=LICENSES.get(publish["license"]),
        is_rail=is_rail(publish["license"]),
        has_license_text=has_license_text(publish["license"]),
        merged=facts.merged,
        data_license=publish["data_license"],
        **describe_scores(results),
    )


def load_template() -> "jinja2.Template":
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["md"] = escape_markdown
    environment.filters["count"] = count
    environment.filters["python"] = format_python
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def describe_scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows of results.json alone."""
    names = ("systems", "differences", "ceiling", "slices", "intervals")
    scores = parse_part(Scores, {name: results.get(name) for name in names})
    protocols = [parse_part(ProtocolScores, part) for part in results.get("protocols", ())]
    unrewritten = parse_part(Unrewritten, results["unrewritten"]) if "unrewritten" in results else None
    return {
        "headline": write_headline(scores, results["data"]["rows"]),
        "results": results,
        "data": results["data"],
        "table": tabulate_scores(scores),
        "differences": describe_differences(scores),
        "intervals": results["intervals"],
        "signatures": {
            label: scores.systems["adapter"][key].signature
            for key, label in name_metrics(scores.systems).items()
        },
        "slices": tabulate_slices(scores.slices),
        "protocols": [(part, tabulate_protocol(part)) for part in protocols],
        "unrewritten": tabulate_unrewritten(unrewritten) if unrewritten else [],
    }


def format_python(value: Any) -> str:
    """Return a value as Python source on one line, in which no text ends a code block or starts HTML."""
    if not isinstance(value, str):
        return repr(value)
    return re.sub("[<>&'`]", lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value))


def tabulate_scores(scored: Scores) -> list[list[str]]:
    """Return the rows of the table of scores, its head first."""
    labels = name_metrics(scored.systems)
    rows = [["system", *labels.values()]]
    for label, scores in tabulate_systems(scored).items():
        cells = [
            format_interval(key, scores[key])
            if key in WITH_INTERVAL
            else format_value(key, scores[key].value)
            for key in labels
        ]
        rows.append([label, *cells])
    return rows


def tabulate_slices(slices: Sequence[Slice]) -> list[list[str]]:
    """Return a table's rows, its head first: each slice, its number of sentences, and each system's BLEU."""
    names = [name for name in SLICED if any(name in part.systems for part in slices)]
    rows = [["sentences", "number", "this adapter, BLEU", *(SYSTEMS[name] for name in names)]]
    for part in slices:
        bleu = {name: scores["bleu"] for name, scores in part.systems.items()}
        beside = [format_value("bleu", bleu[name].value) if name in bleu else "" for name in names]
        rows.append(
            [f"{part.by}: {part.slice}", f"{part.rows:,}", format_interval("bleu", bleu["adapter"]), *beside]
        )
    return rows


def format_setting(value: Any) -> str:
    """Return a recipe's value as the recipe has it: lists with commas, true and false in lower case."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_headline(scored: Scores, rows: int) -> str:
    """Return the result on so many rows in a sentence, with the baselines' and people's scores beside it."""
    bleu = {name: f"{scores['bleu'].value:.1f}" for name, scores in scored.systems.items()}
    score = format_interval("bleu", scored.systems["adapter"]["bleu"])
    text = f"BLEU {score} on {rows:,} held-out sentences"
    beside = [f"{verb} {bleu[name]}" for name, verb in SCORED.items() if name in bleu]
    text += f"; {', '.join(beside)}" if beside else ""
    if scored.ceiling:
        human, adapter = (scored.ceiling.systems[name]["bleu"].value for name in ("human", "adapter"))
        text += f". On those with several rewrites, people score {human:.1f} and the adapter {adapter:.1f}"
    return f"{text}."


def list_metrics(results: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return each metric of the adapter in results.json: its type on the Hub, name on the card, and score."""
    metrics = []
    for key, score in results["systems"]["adapter"].items():
        known = next((type_ for type_ in ("bleu", "rouge") if key.startswith(type_)), key)
        metrics.append((known, METRICS[key], score))
    for part in results.get("protocols", ()):
        for measure, score in part["systems"]["adapter"].items():
            metrics.append((measure.lower(), f"{measure} ({part['protocol']})", score))
    return metrics


def build_metadata(facts: CardFacts) -> str:
    """Return the YAML block's content, as the Hub's card specification has it.

    A local base or a local file has no Hub id: the Hub refuses a card that names one as if it had.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results, publish = facts.results, facts.recipe["publish"]
    data, base = results["data"], results["base"]
    from_hub = data["revision"] is not None
    evaluations = [
        EvalResult(
            task_type="text-generation",
            task_name="Text detoxification",
            dataset_type=data["source"],
            dataset_name=f"{data['source']}, held-out {data['split']} split of this run",
            dataset_split=data["split"],
            dataset_revision=data["revision"],
            metric_type=metric_type,
            metric_name=name,
            metric_value=score["value"],
            metric_args={"signature": score["signature"]},
        )
        for metric_type, name, score in list_metrics(results)
    ]
    extra: dict[str, Any] = {"base_model_relation": "adapter"} if base["revision"] else {}
    if facts.examples:
        extra["widget"] = [
            {"text": format_prompt(text), "output": {"text": output}} for text, output in facts.examples
        ]
    if emissions := facts.environment["training"].get("emissions"):
        extra["co2_eq_emissions"] = {
            "emissions": 1000 * emissions["kg_co2eq"],  # grams
            "source": emissions["estimated_by"],
            "training_type": "fine-tuning",
            "geographical_location": emissions["country"],
            "hardware_used": name_hardware(facts.environment["hardware"]),
        }
    return ModelCardData(
        base_model=base["name"] if base["revision"] else None,
        datasets=[data["source"]] if from_hub else None,
        language="en",
        library_name="peft",
        license=publish["license"],
        pipeline_tag="text-generation",
        tags=[
            "detoxification",
            "text-style-transfer",
            "lora",
            "qlora",
            "trl",
            "sft",
            "not-for-all-audiences",
            *list_tracker_tags(facts.recipe),
        ],
        model_name=facts.name,
        eval_results=evaluations,
        **extra,
    ).to_yaml()


def list_tracker_tags(recipe: Mapping[str, Any]) -> list[str]:
    """Return the tags for the Hub's tab of metrics, where trackio has reported the training."""
    report_to, space = recipe["report_to"] or [], recipe["trackio_space_id"]
    if "trackio" not in ([report_to] if isinstance(report_to, str) else report_to):
        return []
    return ["trackio", *([f"trackio:https://huggingface.co/spaces/{space}"] if space else [])]


def name_hardware(hardware: Mapping[str, Any]) -> str:
    return ", ".join(hardware["gpus"]) or count(hardware["cpu_count"], "CPU core")


def format_grams(kilograms: float) -> str:
    return f"{kilograms:,.1f} kg" if kilograms >= 1 else f"{1000 * kilograms:.3g} g"


def find_metadata_faults(metadata: Mapping[str, Any]) -> list[str]:
    """Return what the Hub's validator would refuse, by the rules of its model card specification."""
    faults = []
    names = [("base_model", metadata["base_model"])] if "base_model" in metadata else []
    for key, name in names + [("datasets", name) for name in metadata.get("datasets", [])]:
        if not HUB_ID.fullmatch(str(name)) or name is None:
            faults.append(f"{key}: found {name!r}, expected the id of a Hub repository")
    license = metadata.get("license")
    if license is not None and not LICENSE_ID.fullmatch(str(license)):
        faults.append(
            f"license: found {license!r}, expected a licence id such as apache-2.0. "
            "Name it as publish.license"
        )
    widget = metadata.get("widget", [])
    if not isinstance(widget, list) or not all(
        isinstance(item, dict) and isinstance(item.get("text"), str) for item in widget
    ):
        faults.append("widget: expected a list of mappings, each with a text")
    for result in (result for model in metadata.get("model-index", []) for result in model["results"]):
        if not all(
            isinstance(result["dataset"].get(key, ""), str)
            for key in ("name", "type", "config", "split", "revision")
        ):
            faults.append("model-index: expected text for each key of a data set")
        if not all(isinstance(metric["value"], int | float) for metric in result["metrics"]):
            faults.append("model-index: expected a number for each metric")
    return faults


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Return a card's metadata and its text."""
    import yaml

    match = re.match(
        r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", text.replace("\r\n", "\n").lstrip("\ufeff"), re.DOTALL
    )
    if not match:
        return {}, text
    metadata = yaml.safe_load(match[1])
    return metadata if isinstance(metadata, dict) else {}, text.replace("\r\n", "\n").lstrip("\ufeff")[
        match.end() :
    ]


def tells_of_merged(card: str | None) -> bool:
    """Say whether a card's generated part, which may be none of ours, offers a merged model too."""
    return 'allow_patterns="merged/*"' in (card or "").partition(BEGIN)[2].partition(END)[0]


def merge_card(ours: str, theirs: str) -> str:
    """Return our card with what a person wrote on theirs: text outside the markers, metadata keys not ours.

    Keys that an earlier card of ours has set are ours (see KEYS). All of a card without markers was written
    by a person, and comes after the generated part.

    Raises:
        Refusal: their card has one marker without the other, or their metadata is no YAML.
    """
    import yaml

    try:
        foreign, text = split_card(theirs)
    except yaml.YAMLError:
        raise Refusal(
            "README.md on the Hub: its metadata is no YAML. Mend it there, and push again."
        ) from None
    if (text.count(BEGIN), text.count(END)) not in ((0, 0), (1, 1)) or text.find(BEGIN) > text.find(END):
        raise Refusal(
            f"README.md on the Hub: expected both {BEGIN!r} and {END!r} once, in this order, or neither. "
            "Mend it there."
        )
    before, after = ("", text) if BEGIN not in text else (text.partition(BEGIN)[0], text.partition(END)[2])
    record = KEYS.match(text.partition(BEGIN)[2])
    earlier = record[1].split(", ") if record else []
    metadata, generated = split_card(ours)
    kept = {key: value for key, value in foreign.items() if key not in metadata and key not in earlier}
    head = ours[: ours.index("\n---\n", 4)] if ours.startswith("---\n") else "---"
    head += f"\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).rstrip()}" if kept else ""
    parts = (before.strip("\n"), generated.strip("\n"), after.strip("\n"))
    return head + "\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
