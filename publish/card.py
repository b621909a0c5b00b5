"""The model card: facts of a run in, Markdown out. No network, no clock."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report import LABELS, SYSTEMS, choose_samples, describe_differences, escape_markdown, format_value, name_metrics
from sft.data import count
from sft.prompt import format_prompt
from sft.run_dir import Refusal

BEGIN = "<!-- generated from here on: what is written above or below is kept -->"
END = "<!-- generated up to here -->"
TEMPLATE = Path(__file__).parent / "card.md.jinja"
SETTINGS = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "dtype", "lora_r", "lora_alpha",
    "lora_dropout", "lora_target_modules", "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs",
    "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay", "max_length",
    "bf16", "fp16", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class CardFacts:
    """All that the card says, as the run directory has it."""

    name: str
    recipe: Mapping[str, Any]  # resolved values
    environment: Mapping[str, Any]
    manifest: Mapping[str, Any]
    results: Mapping[str, Any]
    predictions: Sequence[Mapping[str, Any]]


def render_card(facts: CardFacts) -> str:
    """Return the card: YAML metadata, then text. A name that the template lacks is an error, not a blank.

    Every text that is not ours (samples, file names) passes through `escape_markdown`.
    """
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["md"] = escape_markdown
    environment.filters["count"] = count
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    results, publish = facts.results, facts.recipe["publish"]
    systems, labels = results["systems"], name_metrics(results)
    return template.render(
        begin=BEGIN,
        end=END,
        metadata=build_metadata(facts),
        title=facts.name,
        headline=write_headline(results),
        repo_id=publish["repo_id"] or f"OWNER/{facts.name}",
        base=results["base"],
        data=results["data"],
        manifest=facts.manifest,
        environment=facts.environment,
        results=results,
        labels=list(labels.values()),
        table={SYSTEMS[name]: [format_value(key, scores[key]["value"]) for key in labels] for name, scores in systems.items()},
        differences=describe_differences(results),
        intervals=results["intervals"],
        signatures={label: systems["adapter"][key]["signature"] for key, label in labels.items()},
        settings={key: format_setting(facts.recipe[key]) for key in SETTINGS if facts.recipe[key] is not None},
        scores_prompt=facts.recipe["completion_only_loss"] is False,
        samples=choose_samples(facts.predictions, 5),
        prompt=format_prompt("TEXT"),
        license=publish["license"],
        data_license=publish["data_license"],
    )


def format_setting(value: Any) -> str:
    """Return a recipe's value as the recipe has it: lists with commas, true and false in lower case."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_headline(results: Mapping[str, Any]) -> str:
    """Return the result in one sentence, with the best baseline beside it."""
    bleu = {name: scores["bleu"]["value"] for name, scores in results["systems"].items() if name != "human"}
    rows = f"{results['data']['rows']:,} held-out sentences"
    text = f"BLEU {bleu.pop('adapter'):.1f} on {rows}"
    if bleu:
        best = max(bleu, key=bleu.__getitem__)
        text += f"; the best baseline ({SYSTEMS[best]}) scores {bleu[best]:.1f}"
    return f"{text}."


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
            metric_type="rouge" if key.startswith("rouge") else key,
            metric_name=LABELS[key],
            metric_value=score["value"],
            metric_args={"signature": score["signature"]},
        )
        for key, score in results["systems"]["adapter"].items()
        if key in ("bleu", "chrf", "rouge1", "rouge2", "rougeL")  # the others are of this run's own classifier and words
    ]
    extra = {"base_model_relation": "adapter"} if base["revision"] else {}
    return ModelCardData(
        base_model=base["name"] if base["revision"] else None,
        datasets=[data["source"]] if from_hub else None,
        language="en",
        library_name="peft",
        license=publish["license"],
        pipeline_tag="text-generation",
        tags=["detoxification", "text-style-transfer", "lora", "qlora", "trl", "sft", "not-for-all-audiences"],
        model_name=facts.name,
        eval_results=evaluations,
        **extra,
    ).to_yaml()


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Return a card's metadata and its text."""
    import yaml

    match = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", text.replace("\r\n", "\n").lstrip("\ufeff"), re.DOTALL)
    if not match:
        return {}, text
    metadata = yaml.safe_load(match[1])
    return metadata if isinstance(metadata, dict) else {}, text.replace("\r\n", "\n").lstrip("\ufeff")[match.end() :]


def merge_card(ours: str, theirs: str) -> str:
    """Return our card with what a person wrote on theirs: text outside the markers, and metadata keys that we do not set.

    All of a card without markers was written by a person, and comes after the generated part.

    Raises:
        Refusal: their card has one marker without the other, or their metadata is no YAML.
    """
    import yaml

    try:
        foreign, text = split_card(theirs)
    except yaml.YAMLError:
        raise Refusal("README.md on the Hub: its metadata is no YAML. Mend it there, and push again.") from None
    if (text.count(BEGIN), text.count(END)) not in ((0, 0), (1, 1)) or text.find(BEGIN) > text.find(END):
        raise Refusal(
            f"README.md on the Hub: expected both {BEGIN!r} and {END!r} once, in this order, or neither. Mend it there."
        )
    before, after = ("", text) if BEGIN not in text else (text.partition(BEGIN)[0], text.partition(END)[2])
    metadata, generated = split_card(ours)
    kept = {key: value for key, value in foreign.items() if key not in metadata}
    head = ours[: ours.index("\n---\n", 4)] if ours.startswith("---\n") else "---"
    head += f"\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).rstrip()}" if kept else ""
    parts = (before.strip("\n"), generated.strip("\n"), after.strip("\n"))
    return head + "\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
