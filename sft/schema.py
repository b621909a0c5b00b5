"""The typed recipe: its sections with defaults and help, and the faults of one."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sft.command import InputError


class RecipeError(InputError):
    """One fault of a recipe, or of what it names; `key` says which key mends it, if one does."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class RecipeFaults(InputError):
    """All faults of a recipe: one line each, ready to print."""

    def __init__(self, lines: Sequence[str], status: int = InputError.status) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)
        self.status = status


@dataclass
class Faults:
    """The faults found so far: a line each, and the keys that they are about."""

    lines: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    status: int = InputError.status  # the highest of the faults'

    def add(self, place: str, key: str, message: str) -> None:
        """Add a fault; a place that is a flag names the key already."""
        self.keys.add(key)
        self.lines.append(f"{place}: {message}" if place == f"--{key}" else f"{place}: {key}: {message}")


def describe(text: str, default: Any) -> Any:
    """Return a dataclass field with a default and the line of help that `--help` prints."""
    return field(default=default, metadata={"help": text})


BASELINES = ("copy", "delete", "base", "few_shot", "human")
PROTOCOLS = ("paradetox-2022", "pan-2024", "pan-2025")  # of eval/protocols.py


@dataclass(frozen=True)
class DataConfig:
    source: str = describe("a Hub id, or a .tsv, .csv, .jsonl or .parquet file, or a folder of them", "")
    revision: str | None = describe(
        "branch, tag or commit of a Hub data set; null: the newest, recorded in the run", None
    )
    split: str = describe("the part of a Hub data set or folder to read; our own split follows", "train")
    toxic: str | None = describe("column of the toxic sentence; null: found by ParaDetox's layouts", None)
    neutral: tuple[str, ...] | None = describe(
        "columns of its rewrites; null: found by ParaDetox's layouts", None
    )
    quoting: bool | None = describe(
        "how .tsv and .csv files are quoted; true: a quoted cell may hold tabs, commas and line ends; "
        "false: quotation marks are text; null: true, and a fault where a cell seems to swallow a row",
        None,
    )
    validation: float = describe("share of the source sentences for validation", 0.05)
    test: float = describe("share of the source sentences for test", 0.05)
    closest: bool = describe(
        "train on one rewrite of each sentence alone: the closest to it without its listed words", False
    )
    swaps: float = describe(
        "further training pairs for each pair, with its rude words swapped for others of the word list", 0.0
    )
    inserts: float = describe(
        "further training pairs for each pair: its rewrite, and listed words put into it as source", 0.0
    )
    targets: str | None = describe(
        "a teacher's rewrites of the training sentences, made by eval/distil.py, to learn", None
    )
    targets_only: bool = describe(
        "learn a sentence's target in place of its human rewrites; false: beside them", True
    )
    seed: int = describe(
        "seed of the split; apart from `seed`, so that runs with other seeds share a test split", 0
    )
    streaming: bool = describe(
        "read the rows during training, for corpora that do not fit in memory; needs max_steps", False
    )


@dataclass(frozen=True)
class EvalConfig:
    batch_size: int = describe("sentences generated at a time on each process", 64)
    num_beams: int = describe("beams; 1 is greedy", 1)
    merge_adapter: bool = describe(
        "for generation, merge the adapter into the base: on a CPU, or where the base is not in 4 or 8 bit; "
        "faster",
        True,
    )
    prefix_caching: bool = describe(
        "in generation, compute what all prompts begin with once, and a prompt once for all its beams; "
        "faster",
        True,
    )
    max_new_tokens: int | None = describe(
        "longest answer in tokens; null: the longest of the training data", None
    )
    samples: int = describe("rows in samples.md", 20)
    stress: bool = describe(
        "rewrite the inputs of eval/stress.py too: disguised swearing, shouting, clean sentences", True
    )
    baselines: tuple[str, ...] = describe(
        "what is scored beside the adapter, of copy, delete, base, few_shot and human",
        BASELINES,
    )
    protocols: tuple[str, ...] = describe(
        f"the field's own scores, with models from the Hub: {', '.join(PROTOCOLS)}", ()
    )
    pins: tuple[str, ...] = describe(
        "commits of the protocols' models, each as model@commit; none: the newest, recorded", ()
    )


@dataclass(frozen=True)
class PublishConfig:
    repo_id: str | None = describe("the adapter's repository on the Hub, owner/name", None)
    private: bool = describe("whether that repository is private", True)
    license: str | None = describe(
        "licence of the adapter: the base model's, where it covers derivatives", None
    )
    data_license: str | None = describe("licence of the training data", None)
    emissions_country: str | None = describe(
        "country of the power grid, as three letters (ISO 3166), such as FRA: "
        "then codecarbon estimates what the training emits "
        "(pip install -e '.[emissions]')",
        None,
    )


SECTIONS: dict[str, type] = {"data": DataConfig, "eval": EvalConfig, "publish": PublishConfig}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    `trl` holds a value for each key of TRL's ModelConfig and SFTConfig that is not refused; `given` names the
    keys that the file or an override set; `places` says where ("recipes/tiny.yaml:3" or "--lora_r").
    """

    name: str
    trl: Mapping[str, Any]
    data: DataConfig
    eval: EvalConfig
    publish: PublishConfig
    given: frozenset[str]
    places: Mapping[str, str] = field(compare=False)

    @property
    def output_dir(self) -> Path:
        """The run directory: `output_dir`, or runs/<name of the recipe file>."""
        return Path(self.trl["output_dir"] or f"runs/{self.name}")

    def values(self) -> dict[str, Any]:
        """Return every value as plain YAML types, in the layout of a recipe file."""
        values = {"output_dir": str(self.output_dir)} | {
            key: value for key, value in self.trl.items() if key != "output_dir"
        }
        for section in SECTIONS:
            values[section] = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in dataclasses.asdict(getattr(self, section)).items()
            }
        return values

    def change(self, **values: Any) -> "Recipe":
        """Return the recipe with other values for some of TRL's keys."""
        return dataclasses.replace(self, trl=MappingProxyType(dict(self.trl) | values))

    def is_override(self, key: str) -> bool:
        """Say whether a key was set on the command line."""
        return self.places.get(key, "").startswith("--")

    def report(self, error: RecipeError, faults: Faults) -> None:
        """Add an error to `faults`, at the place where its key was set; one fault a key is enough."""
        faults.status = max(faults.status, error.status)
        if error.key is None:
            faults.lines.append(str(error))
        elif error.key not in faults.keys:
            faults.add(self.places.get(error.key, self.places[""]), error.key, str(error))
