"""results.json as a typed, frozen object: the scores of an evaluation, and what they are bound to."""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.command import RunError

RESULTS = "results.json"
SCHEMA = 6
GENERATED = ("base", "few_shot")  # systems beside the adapter whose outputs a language model generates

LONGEST_KEY = 120  # characters in a message
Scalar = str | int | float | bool | None

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


# ---------------------------------------------------------------------------------------------- reading


class Misfit(ValueError):
    """A JSON value is not of the shape of its type."""

    def __init__(self, key: str, found: str, expected: str) -> None:
        key = key if len(key) <= LONGEST_KEY else f"{key[:LONGEST_KEY]}…"
        super().__init__(
            f"{key}: found {found}, expected {expected}" if key else f"found {found}, expected {expected}"
        )


def parse_json(text: str | bytes, file: Path | str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise RunError(f"{file}: not JSON of this project (nested too deeply).") from None
    except ValueError as error:
        raise RunError(f"{file}: not JSON ({error}); it was changed after the run wrote it.") from None


def describe_value(value: Any) -> str:
    """Return a JSON value in a few words, however large it is."""
    for kinds, words in ((Mapping, "an object"), (list, "a list"), (type(None), "null")):
        if isinstance(value, kinds):
            return words
    text = json.dumps(value[:41] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"


@functools.cache
def list_fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Return the type of each field of a dataclass, and whether the JSON may lack it."""
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        hint, optional = hints[field.name], field.default is not dataclasses.MISSING
        if optional:  # where it is None, the JSON lacks it, and has no null
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        found[field.name] = hint, optional
    return found


def read_value(value: Any, hint: Any, key: str) -> Any:
    """Return a JSON value as one of the type `hint`: a dataclass, a mapping, a tuple, or a scalar or None.

    Raises:
        Misfit: it is of another shape.
    """
    if dataclasses.is_dataclass(hint):
        return read_object(value, typing.cast(type, hint), key)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping:
        check_kind(value, Mapping, key, "an object")
        return {name: read_value(inner, arguments[1], join_key(key, name)) for name, inner in value.items()}
    if origin is tuple:
        check_kind(value, list, key, "a list")
        return tuple(read_value(inner, arguments[0], f"{key}[{place}]") for place, inner in enumerate(value))
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        return read_value(value, kinds[0], key) if len(kinds) == 1 else read_scalar(value, key)
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    check_kind(value, (int, float) if hint is float else hint, key, names[hint])
    if isinstance(value, bool) and hint is not bool:
        raise Misfit(key, describe_value(value), names[hint])
    return check_finite(value, key)


def read_object(value: Any, kind: type, key: str) -> Any:
    """Return a JSON object as a dataclass."""
    check_kind(value, Mapping, key, "an object")
    known = list_fields(kind)
    for name in value:
        if name not in known:
            raise Misfit(join_key(key, name), "an unknown key", f"some of {', '.join(known)}")
    found = {}
    for name, (hint, optional) in known.items():
        if name in value or not optional:
            found[name] = read_field(value, name, hint, key)
    return kind(**found)


def join_key(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def read_field(value: Mapping[str, Any], name: str, hint: Any, key: str) -> Any:
    place = join_key(key, name)
    if name not in value:
        raise Misfit(place, "nothing", "this key")
    return read_value(value[name], hint, place)


def read_scalar(value: Any, key: str) -> Scalar:
    check_kind(value, (str, int, float, bool), key, "a text, a number, true, false or null")
    return typing.cast(Scalar, check_finite(value, key))


def check_kind(value: Any, kinds: Any, key: str, expected: str) -> None:
    if not isinstance(value, kinds):
        raise Misfit(key, describe_value(value), expected)


def check_finite(value: Any, key: str) -> Any:
    try:
        finite = not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        finite = False
    if not finite:
        raise Misfit(key, describe_value(value), "a finite number")
    return value


def write_value(value: Any) -> Any:
    """Return a dataclass of this module as JSON has it."""
    if dataclasses.is_dataclass(value):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: write_value(inner) for field, inner in pairs if inner is not field.default}
    if isinstance(value, Mapping):
        return {name: write_value(inner) for name, inner in value.items()}
    return [write_value(inner) for inner in value] if isinstance(value, tuple) else value
