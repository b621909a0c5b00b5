"""Find an adapter, in a run or on the Hub, with what its use needs; a stranger's files are checked first."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.standalone import FILES, download_files
from sft.command import InputError, Refusal, RunError
from sft.hub import HubFailure, explain_errors
from sft.model import Base, resolve_base
from sft.prompt import TEMPLATE
from sft.run_dir import Run, open_run
from sft.schema import Recipe
from sft.storage import hash_file, read_json

QUANTIZATION_KEYS = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "dtype",
    "attn_implementation",
)  # fmt: skip
SHA256, COMMIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
MODULE = re.compile(
    r"[A-Za-z_][\w.-]{0,199}"
)  # a name in a model; peft takes more than names for regular expressions
ATTENTION = re.compile(
    r"\w{1,40}"
)  # a name with a slash would be a kernel that transformers downloads and runs
MOST_MODULES, LARGEST_RANK = 1000, 4096


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated; `batch_size` is sentences at a time on each process."""

    num_beams: int
    max_new_tokens: int
    batch_size: int
    merge_adapter: bool = True  # see eval.generate.load_model
    prefix_caching: bool = True  # see eval.generate.Rewriter.cache_prefix

    def describe(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Adapter:
    """A fine-tuned adapter with all that its use needs: where its files lie, its base, and its settings.

    Its hashes are taken when it is found, and so before it is loaded.
    """

    folder: Path
    base: Base
    quantization: dict[str, Any]
    settings: GenerationSettings
    tokens: dict[str, str | None]  # `pad_token` and `eos_token`, where the recipe names them
    hashes: dict[str, str]  # of its files, as results.json has them

    def check_unchanged(self) -> None:
        """Raise where its files are no longer those that were found.

        Raises:
            Refusal: somebody has replaced them.
        """
        if hash_adapter(self.folder) != self.hashes:
            raise Refusal(
                f"{self.folder}: its files were replaced while they were in use, so that nobody knows "
                "which adapter wrote the outputs. Start the same command again."
            )


def hash_adapter(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of an adapter's two files, as results.json has them."""
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    return {"sha256": hash_file(weights), "config_sha256": hash_file(config)}


def find_adapter(name: str) -> Adapter:
    """Return the adapter of a run directory, or download one from the Hub.

    Raises:
        InputError: it is neither, the run is not finished, or its base is not the one it was trained on.
    """
    if Path(name).is_dir():
        return open_adapter(open_run(name))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        message = "no such folder. Expected a run directory, such as runs/tiny, or an adapter's Hub id."
        raise RunError(f"{name}: {message}")
    return download_adapter(name)


def open_adapter(run: Run) -> Adapter:
    """Return a finished run's adapter, once prompt and base are known to be those of the training."""
    recipe = run.recipe
    manifest, environment = run.manifest, run.environment
    if manifest["prompt"] != TEMPLATE:
        raise RunError(
            f"{run.root}: trained with another prompt than sft/prompt.py now has; "
            "its answers would mean nothing. "
            "Train again, or go back to the commit in environment.json."
        )
    if fault := find_foreign_config(read_json(run.adapter_config)):
        raise RunError(f"{run.adapter_config}: {fault}")
    trained = environment["base"]
    base = resolve_base(recipe.trl["model_name_or_path"], trained["revision"])
    if base.weights != trained["weights"]:
        raise RunError(
            f"{run.root}: the base model in {base.path} is no longer the one that the adapter was trained on."
        )
    run.check_seal()
    settings = choose_settings(recipe, manifest)
    quantization = {key: recipe.trl[key] for key in QUANTIZATION_KEYS}
    tokens = {key: recipe.trl[key] for key in ("pad_token", "eos_token")}
    return Adapter(run.adapter, base, quantization, settings, tokens, hash_adapter(run.adapter))


def choose_settings(recipe: Recipe, manifest: dict[str, Any]) -> GenerationSettings:
    settings = recipe.eval
    return GenerationSettings(
        num_beams=settings.num_beams,
        max_new_tokens=settings.max_new_tokens or manifest["longest_answer"],
        batch_size=settings.batch_size,
        merge_adapter=settings.merge_adapter,
        prefix_caching=settings.prefix_caching,
    )


def download_adapter(name: str, revision: str | None = None) -> Adapter:
    """Download a published adapter; its results.json says how it was evaluated, and so how it is used.

    Raises:
        InputError: it is not there, or is no adapter of this project whose weights, base and prompt are those
            evaluated; or a setting in its files is none that this project writes.
    """
    with explain_errors(name, "run or adapter", revision):
        folder = download_files(name, revision)
    for file in FILES:
        if not (folder / file).is_file():
            raise RunError(
                f"{name}: no {file} in this repository. Expected an adapter that this project published."
            )
    config, results = (
        read_foreign(name, folder / "adapter_config.json"),
        read_foreign(name, folder / "results.json"),
    )
    if fault := next(find_foreign_settings(results), None):
        raise RunError(f"{name}: its results.json: {fault}")
    if fault := find_foreign_config(config):
        raise RunError(f"{name}: its adapter_config.json: {fault}")
    if results["prompt"] != TEMPLATE:
        message = "trained with another prompt than sft/prompt.py has. Use the version in its results.json."
        raise RunError(f"{name}: {message}")
    hashes = hash_adapter(folder)
    if results["adapter"]["sha256"] != hashes["sha256"]:
        message = "its weights are not those that its results.json was made with (the SHA-256 differs)."
        raise RunError(f"{name}: {message}")
    if fault := find_config_fault(folder / "adapter_config.json", results):
        raise RunError(f"{name}: its adapter_config.json {fault}.")
    try:
        base = resolve_base(results["base"]["name"], results["base"]["revision"])
    except InputError as error:
        kind = HubFailure if isinstance(error, HubFailure) else RunError
        raise kind(f"{name}: its base model: {error}") from None
    if results["base"]["weights"] != base.weights:
        raise RunError(f"{name}: {base.path} here is not the base model that it was trained on.")
    settings = GenerationSettings(**results["generation"])
    return Adapter(folder, base, results["quantization"], settings, results["tokens"], hashes)


def find_config_fault(path: Path, results: Mapping[str, Any]) -> str | None:
    """Say why an adapter_config.json is not the one that was evaluated, or return None.

    An older results.json lacks its hash.
    """
    config, base = read_json(path), results["base"]
    if results["adapter"].get("config_sha256") not in (None, hash_file(path)):
        return "was changed after the evaluation (its SHA-256 differs)"
    if (config.get("base_model_name_or_path"), config.get("revision")) != (base["name"], base["revision"]):
        return "names another base model or revision than results.json"
    return None


# --------------------------------------------------------------------------------------- what strangers wrote


def read_foreign(name: str, path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a download.

    Raises:
        RunError: it holds something else, or nests too deep to be read.
    """
    try:
        value = read_json(path)
    except (RunError, RecursionError):
        raise RunError(f"{name}: its {path.name} is no JSON that can be read.") from None
    if not isinstance(value, dict):
        raise RunError(f"{name}: its {path.name} is no JSON object.")
    return value


def is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def is_matched(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def is_flag(value: Any) -> bool:
    return type(value) is bool


def is_base_name(value: Any) -> bool:
    """Say whether a base's name is a Hub id or a path inside this project, as results.json has it."""
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        return False
    return not value.startswith(("/", "~")) and ".." not in value.split("/") and "\\" not in value


def is_token(value: Any) -> bool:
    return value is None or (isinstance(value, str) and 0 < len(value) <= 100)


def is_weights(value: Any) -> bool:
    """Say whether it maps weight files' names to SHA-256s."""
    return isinstance(value, dict) and all(is_matched(digest, SHA256) for digest in value.values())


Check = tuple[Callable[[Any], bool], str]  # of a value, and what is expected of it
FLAG: Check = (is_flag, "true or false")
DIGEST: Check = (lambda value: is_matched(value, SHA256), "a SHA-256")
TOKEN: Check = (is_token, "a token or null")
# By section and key of results.json; those whose key ends in "?" may be missing.
CHECKS: dict[str, dict[str, Check]] = {
    "adapter": {"sha256": DIGEST, "config_sha256?": DIGEST},
    "base": {
        "name": (is_base_name, "a Hub id, or a path inside the project"),
        "revision": (
            lambda value: value is None or is_matched(value, COMMIT),
            "a commit of 40 hex digits, or null",
        ),
        "weights": (is_weights, "the SHA-256 of each weights file"),
    },
    "generation": {
        "num_beams": (lambda value: is_whole(value, 1, 64), "a whole number from 1 to 64"),
        "max_new_tokens": (lambda value: is_whole(value, 1, 4096), "a whole number from 1 to 4096"),
        "batch_size": (lambda value: is_whole(value, 1, 4096), "a whole number from 1 to 4096"),
        "merge_adapter?": FLAG,
        "prefix_caching?": FLAG,
    },
    "quantization": {
        "load_in_4bit": FLAG,
        "load_in_8bit": FLAG,
        "bnb_4bit_quant_type": (lambda value: value in ("nf4", "fp4"), "nf4 or fp4"),
        "use_bnb_nested_quant": FLAG,
        "dtype": (
            lambda value: value in ("auto", "bfloat16", "float16", "float32", None),
            "auto, bfloat16, float16, float32 or null",
        ),
        "attn_implementation?": (
            lambda value: value is None or is_matched(value, ATTENTION),
            "the name of an attention that transformers brings, or null",
        ),
    },
    "tokens": {"pad_token": TOKEN, "eos_token": TOKEN},
}
CLOSED = ("generation", "quantization", "tokens")  # sections that hold nothing else


def find_foreign_settings(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield what in a stranger's results.json this project does not write, of what its use depends on."""
    if not isinstance(results.get("prompt"), str):
        yield f"prompt: found {show(results.get('prompt'))}, expected a text."
    for section, checks in CHECKS.items():
        values = results.get(section)
        if not isinstance(values, dict):
            yield f"{section}: found {show(values)}, expected a JSON object."
            continue
        known = {key.rstrip("?"): key.endswith("?") for key in checks}
        for key, optional in known.items():
            is_right, expected = checks[f"{key}?" if optional else key]
            if key not in values and not optional:
                yield f"{section}.{key}: missing, expected {expected}."
            elif key in values and not is_right(values[key]):
                yield f"{section}.{key}: found {show(values[key])}, expected {expected}."
        unknown = sorted(set(values) - set(known)) if section in CLOSED else []
        if unknown:
            yield f"{section}.{show(unknown[0])}: no key of it. Expected {', '.join(known)}."


def find_foreign_config(config: Any) -> str | None:
    """Say what in an adapter_config.json is not of a LoRA that this project trains, or return None.

    peft takes texts and keys for regular expressions, on which a hostile one never ends; other kinds of
    adapters load further models.
    """
    if not isinstance(config, dict):
        return "no JSON object. Expected the one that peft wrote."
    if config.get("peft_type") != "LORA":
        return f"peft_type: found {show(config.get('peft_type'))}, expected LORA."
    if not is_whole(config.get("r"), 1, LARGEST_RANK):
        return f"r: found {show(config.get('r'))}, expected a whole number from 1 to {LARGEST_RANK}."
    lists = {
        "target_modules": False,
        "exclude_modules": True,
        "modules_to_save": True,
        "layers_pattern": True,
    }
    for key, optional in lists.items():
        value = config.get(key)
        is_named = (
            isinstance(value, list)
            and len(value) <= MOST_MODULES
            and all(is_matched(name, MODULE) for name in value)
        )
        if not is_named and not (optional and not value) and value != "all-linear":
            return f"{key}: found {show(value)}, expected a list of module names."
    for key in ("rank_pattern", "alpha_pattern"):
        value = config.get(key) or {}
        if not isinstance(value, dict) or not all(is_matched(name, MODULE) for name in value):
            return f"{key}: found {show(value)}, expected numbers by module names."
    return None


def show(value: Any) -> str:
    """Return a foreign value as a short, printable text."""
    try:
        text = ascii(value)
    except RecursionError:
        text = "nested values"
    return text if len(text) <= 80 else f"{text[:77]}..."
