"""The shapes of a run directory's JSON files; keys that nobody reads again are not named."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict


class SplitRecord(TypedDict):
    examples: int
    references: int
    sha256: str


class AdapterRecord(TypedDict):
    sha256: str


class TeacherBaseRecord(TypedDict):
    name: str
    revision: str | None


class TeacherRecord(TypedDict):
    name: str
    adapter: AdapterRecord
    base: TeacherBaseRecord
    num_beams: int
    has_seen: str


class TargetsRecord(TypedDict):
    """What a manifest says of the targets that were learned; see sft/targets.py."""

    file: str
    sha256: str
    sentences: int
    teacher: TeacherRecord
    rule: str
    from_people: int
    alone: bool


class SplitsRecord(TypedDict):
    train: SplitRecord
    validation: SplitRecord
    test: SplitRecord


class Manifest(TypedDict):
    """data/manifest.json; see Preflight.describe_data."""

    source: str
    revision: str | None
    sha256: Mapping[str, str]
    cleaning: Mapping[str, int]
    streaming: bool
    splits: SplitsRecord
    leaks: int
    targets: TargetsRecord | None
    longest_answer: int
    prompt: str


class BaseRecord(TypedDict):
    name: str
    revision: str | None
    weights: Mapping[str, str]


class Parameters(TypedDict):
    trainable: int
    total: int


class Hardware(TypedDict):
    gpus: tuple[str, ...]
    cpu_count: int


class Emissions(TypedDict):
    kg_co2eq: float
    country: str | None
    estimated_by: str


class Segment(TypedDict):
    """From a step on, so many processes; see sft/elastic.py."""

    processes: int
    from_step: int


class Training(TypedDict):
    """What a training took; seconds, GiB, and the loss at each evaluation."""

    steps: int
    seconds: float
    train_seconds: float
    samples_per_second: float
    validation_loss: tuple[float, ...]
    peak_memory_gib: float
    emissions: NotRequired[Emissions]
    elastic: NotRequired[tuple[Segment, ...]]


class Processes(TypedDict):
    """How many processes a training has had; `elastic` where the number changed."""

    processes: int
    elastic: NotRequired[tuple[Segment, ...] | None]


class Environment(Processes):
    """environment.json; `training` is there once the training has ended."""

    command: str
    recipe_sha256: NotRequired[str]
    base: BaseRecord
    parameters: Parameters
    asked: Mapping[str, Any]
    git_commit: str | None
    versions: Mapping[str, str]
    hardware: Hardware
    training: NotRequired[Training]


class ExampleLine(TypedDict):
    """A line of a split."""

    id: str
    toxic: str
    references: tuple[str, ...]


class LogLine(TypedDict):
    """A line of train.jsonl; see ProgressLog."""

    step: int
    seconds: float
    train_seconds: float
    samples_per_second: float


class TrainerState(TypedDict):
    """trainer_state.json of a checkpoint, as far as it is read here."""

    global_step: int
    best_model_checkpoint: NotRequired[str | None]


class Prediction(TypedDict):
    """A line of predictions.jsonl; what other systems wrote stands in it by their names."""

    id: str
    toxic: str
    references: tuple[str, ...]
    prediction: str
    scores: Mapping[str, float]
    base: NotRequired[str]
    few_shot: NotRequired[str]


class Attempt(TypedDict):
    """A line of unrewritten.jsonl."""

    toxic: str
    prediction: str
    scores: Mapping[str, float]
