"""results.json as a typed, frozen object: the scores of an evaluation, and what they are bound to."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.command import RunError
from sft.typed_json import Misfit, Scalar, parse_json, read_field, read_value

RESULTS = "results.json"
SCHEMA = 6
GENERATED = ("base", "few_shot")  # systems beside the adapter whose outputs a language model generates

Part = typing.TypeVar("Part")


@dataclass(frozen=True)
class Interval:
    """A value, and the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class ReportedScore(Interval):
    """A score with its interval, and the signature that says exactly how it was computed."""

    signature: str


Systems = Mapping[str, Mapping[str, ReportedScore]]  # by system and metric
Differences = Mapping[str, Mapping[str, Interval]]  # the first system's scores above each other system's


class Scored(typing.Protocol):
    """What a table of scores is made from."""

    @property
    def systems(self) -> Systems: ...

    @property
    def differences(self) -> Differences: ...

    @property
    def ceiling(self) -> "Ceiling | None": ...


@dataclass(frozen=True)
class AdapterHashes:
    """The SHA-256 of adapter_model.safetensors, which the scores belong to, and of adapter_config.json."""

    sha256: str
    config_sha256: str | None = None


@dataclass(frozen=True)
class BaseModel:
    """A Hub id with its commit, or a path in this project with none; and its weights' SHA-256 by file."""

    name: str
    revision: str | None
    weights: Mapping[str, str]


@dataclass(frozen=True)
class Data:
    """The rows that were scored: a split of the run, or (`split` is None) a file without what it has seen."""

    source: str
    revision: str | None
    files: Mapping[str, str]
    split: str | None
    left_out_as_seen: int
    rows: int
    rows_of: int
    sha256: str
    splits: Mapping[str, str] | None = None


@dataclass(frozen=True)
class FileData:
    """The rows of a file of anybody's outputs."""

    rows: int
    sha256: str
    files: Mapping[str, str]
    left_out_of_train: int | None = None


@dataclass(frozen=True)
class Generation:
    """How the answers were generated; see `eval.generate.GenerationSettings`."""

    num_beams: int
    max_new_tokens: int
    batch_size: int
    merge_adapter: bool
    prefix_caching: bool


@dataclass(frozen=True)
class Ceiling:
    """People and each system, on sentences with several rewrites, against all of these but one at a time."""

    rows: int
    systems: Systems
    differences: Differences


@dataclass(frozen=True)
class Slice:
    """Some scores on a part of the rows."""

    by: str
    slice: str
    rows: int
    systems: Systems


@dataclass(frozen=True)
class ResamplingMethod:
    """How the intervals were computed."""

    method: str
    level: int
    resamples: int
    seed: int


@dataclass(frozen=True)
class StressCase:
    text: str
    output: str
    passed: bool


@dataclass(frozen=True)
class StressGroup:
    """Stress cases of one kind, and how many of their outputs keep its rule."""

    group: str
    rule: str
    passed: int
    of: int
    cases: tuple[StressCase, ...]


@dataclass(frozen=True)
class ProtocolScores:
    """The scores of one protocol of `eval.protocols`, and the commits of its models."""

    protocol: str
    source: str
    note: str
    models: Mapping[str, str]
    systems: Systems
    differences: Differences
    ceiling: Ceiling | None = None


@dataclass(frozen=True)
class UnrewrittenSlice:
    """The scores on all of the sentences without rewrites, or on those of one of the annotators' reasons."""

    slice: str
    rows: int
    systems: Systems
    differences: Differences


@dataclass(frozen=True)
class Unrewritten:
    """Sentences that annotators could not rewrite and that the run has not seen, and their scores."""

    source: str
    file: str
    rows: int
    rows_of: int
    sha256: str
    left_out_as_seen: int
    slices: tuple[UnrewrittenSlice, ...]


@dataclass(frozen=True)
class Scores:
    """The part of the results that needs outputs and references alone: see `eval.scoring.score_outputs`."""

    systems: Systems
    differences: Differences
    ceiling: Ceiling | None
    slices: tuple[Slice, ...]
    intervals: ResamplingMethod


@dataclass(frozen=True, kw_only=True)
class FileResults:
    """The scores of a file of anybody's outputs."""

    data: FileData
    systems: Systems
    differences: Differences
    ceiling: Ceiling | None = None
    slices: tuple[Slice, ...]
    intervals: ResamplingMethod

    def to_json(self) -> dict[str, Any]:
        return write_value(self)


@dataclass(frozen=True, kw_only=True)
class Results:
    """results.json: the scores of an adapter's outputs, and all that they are bound to.

    Fields are in the order of the file; those with a default, here and in the parts, are left out where None.
    """

    schema: int
    created: str  # ISO 8601, UTC
    adapter: AdapterHashes
    base: BaseModel
    quantization: Mapping[str, Scalar]
    tokens: Mapping[str, str | None]
    prompt: str
    data: Data
    generation: Generation
    systems: Systems
    differences: Differences
    ceiling: Ceiling | None = None
    slices: tuple[Slice, ...]
    intervals: ResamplingMethod
    stress: tuple[StressGroup, ...]
    protocols: tuple[ProtocolScores, ...]
    unrewritten: Unrewritten | None = None
    toxicity_accuracy: float | None  # of the fitted classifier, on the validation split
    generation_seconds: float
    processes: int
    versions: Mapping[str, str]

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, Any], file: Path | str = RESULTS) -> "Results":
        """Return the results that a file's text, or its parsed content, describes.

        Raises:
            OtherSchema: another version of this project wrote it.
            RunError: it is not JSON, or not laid out as `Results`; the message names file, key, found and
                expected.
        """
        content = parse_json(source, file) if isinstance(source, str | bytes) else source
        try:
            if isinstance(content, Mapping) and read_field(content, "schema", int, "") != SCHEMA:
                raise OtherSchema(
                    f"{file}: schema: found {content['schema']}, expected {SCHEMA}.", content["schema"]
                )
            return typing.cast(Results, read_value(content, cls, ""))
        except Misfit as misfit:
            raise RunError(f"{file}: {misfit}.") from None

    def to_json(self) -> dict[str, Any]:
        """Return the content of results.json."""
        return write_value(self)


class OtherSchema(RunError):
    """The results are of another version of this project."""

    def __init__(self, message: str, schema: int) -> None:
        super().__init__(message)
        self.schema = schema


def read_results(path: Path) -> Results:
    """Return the results in a file.

    Raises:
        RunError: the file is missing; or see `Results.from_json`.
    """
    try:
        return Results.from_json(path.read_bytes(), path)
    except FileNotFoundError:
        raise RunError(f"{path}: missing from the run directory.") from None


def parse_part(kind: type[Part], part: Any) -> Part:
    """Return a part of results.json's content as its type, a dataclass of this module.

    Raises:
        RunError: see `Results.from_json`.
    """
    try:
        return typing.cast(Part, read_value(part, kind, ""))
    except Misfit as misfit:
        raise RunError(f"{RESULTS}: {kind.__name__}: {misfit}.") from None


def write_value(value: Any) -> Any:
    """Return a dataclass of this module as JSON has it."""
    if dataclasses.is_dataclass(value):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: write_value(inner) for field, inner in pairs if inner is not field.default}
    if isinstance(value, Mapping):
        return {name: write_value(inner) for name, inner in value.items()}
    return [write_value(inner) for inner in value] if isinstance(value, tuple) else value
