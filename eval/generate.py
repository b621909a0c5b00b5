"""Texts -> rewritten texts: batched by length, over all processes, with a fine-tuned model from a run or from the Hub."""

import contextlib
import copy
import gc
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from eval.baselines import fit_lexicon
from eval.penalty import WordPenalty
from eval.rows import read_split
from sft.data import Example, clean_text, count, tokenise_texts
from sft.hub import HubFailure, explain_errors
from sft.model import Base, join_processes, load_finetuned, load_tokenizer, resolve_base
from sft.prompt import TEMPLATE, format_prompt
from sft.recipe import InputError, Recipe, RecipeError, load_recipe, tell_once
from sft.run_dir import RunDir, RunError, hash_file, open_run, read_json, write_text

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

QUANTIZATION_KEYS = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "dtype", "attn_implementation",
)  # fmt: skip
PREFIX_CACHING = ("bloom", "gpt2", "gpt_neox", "llama", "opt", "phi", "qwen2")  # tested with it (tests/test_eval.py)


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated; `batch_size` is sentences at a time on each process."""

    num_beams: int
    max_new_tokens: int
    batch_size: int
    listed_penalty: float = 0.0  # nats; see eval/penalty.py
    listed_words: Sequence[str] = ()  # that cost it; none where nothing does
    merge_adapter: bool = True  # see sft.model.load_finetuned
    prefix_caching: bool = True  # see Rewriter.cache_prefix

    def describe(self) -> dict[str, Any]:
        return asdict(self) | {"listed_words": list(self.listed_words)}


@dataclass(frozen=True)
class Adapter:
    """A fine-tuned adapter with all that its use needs: where its files lie, its base, and its settings."""

    folder: Path
    base: Base
    quantization: dict[str, Any]
    settings: GenerationSettings
    tokens: dict[str, str | None]  # `pad_token` and `eos_token`, where the recipe names them

    def describe(self) -> dict[str, str]:
        """Return the hashes of its files, as results.json has them."""
        weights, config = self.folder / "adapter_model.safetensors", self.folder / "adapter_config.json"
        return {"sha256": hash_file(weights), "config_sha256": hash_file(config)}


@dataclass(frozen=True)
class Rewriter:
    """A loaded model that rewrites texts."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    settings: GenerationSettings

    @cached_property
    def processors(self) -> list[Any]:
        """The logits processors that `generate` gets."""
        penalty = self.settings.listed_penalty
        return [WordPenalty(self.tokenizer, self.settings.listed_words, penalty)] if penalty else []

    def rewrite(
        self,
        texts: Sequence[str],
        progress_label: str | None = None,
        shots: Sequence[Example] = (),
        journal: Path | None = None,
    ) -> list[str]:
        """Return a rewrite for each text, in order, on every process; an empty text gives an empty rewrite.

        An answer is trimmed and otherwise left as the model gave it. Batches are formed before they are dealt out to
        the processes, so that the same texts share a batch, and its padding, whatever the number of processes.

        Args:
            texts: of any length; white space in them is made plain.
            progress_label: shows a progress bar of that name on the main process, or a line where there is no terminal.
            shots: solved before each text, with the first of their rewrites.
            journal: a folder of this call's own, where each batch is kept once it is done: what a killed call has
                done is not done again.
        """
        from accelerate.utils import gather_object

        state = join_processes()
        cleaned = [clean_text(text) for text in texts]
        prompts = {index: format_prompt(text) for index, text in enumerate(cleaned) if text}
        solved = self.tokenise_shots(shots)
        ids = {
            index: solved + prompt
            for index, prompt in zip(prompts, tokenise_texts(list(prompts.values()), self.tokenizer), strict=True)
        }
        order = sorted(ids, key=lambda index: (-len(ids[index]), index))
        size = max(1, self.settings.batch_size // (1 + len(shots)))  # prompts are about that many times as long
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        mine = batches[state.process_index :: state.num_processes]
        done = read_journal(journal)
        prefix = self.cache_prefix(list(ids.values()), solved) if mine else None
        with (
            make_progress(progress_label if state.is_main_process else None, len(texts)) as progress,
            open_journal(journal, state.process_index) as stream,
        ):
            for batch in progress.track(mine, description=progress_label or ""):
                if not done.keys() >= set(batch):
                    answers = dict(zip(batch, self.generate_batch([ids[index] for index in batch], prefix), strict=True))
                    done |= answers
                    if stream:
                        stream.write(json.dumps(answers) + "\n")
                        stream.flush()
        rewrites = dict(gather_object(list(done.items())))
        return [rewrites.get(index, "") for index in range(len(texts))]

    def tokenise_shots(self, shots: Sequence[Example]) -> list[int]:
        """Return the token ids of prompts with their answers, each with its end."""
        prompts = tokenise_texts([format_prompt(shot.toxic) for shot in shots], self.tokenizer)
        answers = tokenise_texts([shot.references[0] for shot in shots], self.tokenizer, is_start=False)
        end = [self.tokenizer.eos_token_id]
        return [token for pair in zip(prompts, answers, strict=True) for token in (*pair[0], *pair[1], *end)]

    def cache_prefix(self, prompts: Sequence[Sequence[int]], solved: Sequence[int]) -> "DynamicCache | None":
        """Return the key-value cache of what all `prompts` begin with: `solved` shots, and the instruction.

        None where the recipe says so, and, with a line, for models that were not tested with it: padding then lies
        between beginning and rest, and some count it as distance. Two prompts of our own bound the beginning, so that
        it is the same for one text and for many, as long as none merges with the newline before it.
        """
        import torch
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        if not self.settings.prefix_caching:
            return None
        others = [[*solved, *ids] for ids in tokenise_texts([format_prompt("a"), format_prompt("?")], self.tokenizer)]
        same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*others, *prompts, strict=False))
        shared = [tokens[0] for tokens in same]
        kind = self.model.config.model_type
        if shared and kind in PREFIX_CACHING and not self.model.generation_config.cache_implementation:
            cache = self.fill_cache(torch.tensor([shared]), torch.ones(1, len(shared), dtype=torch.long))
            if isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers):
                return cache
        tell_once(f"{kind}: no prefix caching, which is for {', '.join(PREFIX_CACHING)} with a cache that keeps every token")
        return None

    def fill_cache(self, ids: "torch.Tensor", mask: "torch.Tensor", cache: "DynamicCache | None" = None) -> Any:
        """Return the model's cache with the keys and values of all tokens; ids and mask are (prompts, tokens)."""
        return self.generate(ids, mask, cache, num_beams=1, max_new_tokens=1, return_dict_in_generate=True).past_key_values

    def generate(self, ids: "torch.Tensor", mask: "torch.Tensor", cache: "DynamicCache | None", **options: Any) -> Any:
        """Return what the model's own `generate` does, without sampling; what is in the cache is not computed again."""
        import torch

        with torch.inference_mode():
            return self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                past_key_values=cache,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                **options,
            )

    def generate_batch(self, prompts: Sequence[Sequence[int]], prefix: "DynamicCache | None" = None) -> list[str]:
        """Return the trimmed answer to each prompt (lists of token ids, of any lengths), which begin with what `prefix` holds.

        Padding lies between that and the rest of a prompt, which the answer follows directly.
        """
        import torch

        start, beams = 0 if prefix is None else prefix.get_seq_length(), self.settings.num_beams
        width = max(map(len, prompts))
        rows = [(prompt[:start], width - len(prompt), prompt[start:]) for prompt in prompts]
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*head, *[pad] * gap, *rest] for head, gap, rest in rows])
        mask = torch.tensor([[1] * len(head) + [0] * gap + [1] * len(rest) for head, gap, rest in rows])
        cache = None
        if prefix is not None:
            cache = copy.deepcopy(prefix)
            cache.batch_repeat_interleave(len(prompts))
            if beams > 1:  # `generate` would compute each prompt once a beam
                cache = self.fill_cache(ids, mask, cache)
                cache.crop(-1)  # it begins with the last token
                cache.batch_repeat_interleave(beams)
        limit = self.settings.max_new_tokens
        output = self.generate(ids, mask, cache, num_beams=beams, max_new_tokens=limit, logits_processor=self.processors)
        # What stands behind the end is padding, and a pad token may be an ordinary word of the vocabulary.
        answers = [
            itertools.takewhile(lambda token: token != self.tokenizer.eos_token_id, row) for row in output[:, width:].tolist()
        ]
        return [self.tokenizer.decode(list(answer), skip_special_tokens=True).strip() for answer in answers]


def read_journal(folder: Path | None) -> dict[int, str]:
    """Return the answers that calls with the same journal have kept, by the place of their text."""
    done: dict[int, str] = {}
    for path in sorted(folder.glob("[0-9]*.jsonl")) if folder else ():  # not what another process is about to write
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # a line that was cut off by a kill is of a batch that is done again
                done |= {int(index): answer for index, answer in json.loads(line).items()}
    return done


@contextlib.contextmanager
def open_journal(folder: Path | None, process: int) -> Iterator[TextIO | None]:
    """Open this process's file in `folder` to append to it."""
    if folder is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{process}.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, text[: text.rfind("\n") + 1])  # without a line that was cut off
    with path.open("a", encoding="utf-8") as stream:
        yield stream


def make_progress(label: str | None, number: int) -> Any:
    """Return a progress bar, which shows only with a label; where there is no terminal for it, a line says what is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    if label is not None and not console.is_terminal:
        console.print(f"{label}: {count(number, 'sentence')}", highlight=False)
    return Progress(*columns, console=console, disable=label is None or not console.is_terminal, transient=True)


# --------------------------------------------------------------------------------------------------------- finding


def find_adapter(name: str) -> Adapter:
    """Return the adapter of a run directory, or download one from the Hub.

    Raises:
        InputError: it is neither, the run is not finished, or its base is not the one it was trained on.
    """
    if Path(name).is_dir():
        return open_adapter(open_run(name))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RunError(f"{name}: no such folder. Expected a run directory, such as runs/tiny, or an adapter's Hub id.")
    return download_adapter(name)


def open_adapter(run: RunDir) -> Adapter:
    """Return a finished run's adapter, after holding the prompt and the base against those of the training."""
    recipe = load_recipe(run.recipe)
    manifest, environment = read_json(run.manifest), read_json(run.environment)
    if manifest["prompt"] != TEMPLATE:
        raise RunError(
            f"{run.root}: trained with another prompt than sft/prompt.py now has; its answers would mean nothing. "
            "Train again, or go back to the commit in environment.json."
        )
    trained = environment["base"]
    base = resolve_base(recipe.trl["model_name_or_path"], trained["revision"])
    if base.weights != trained["weights"]:
        raise RunError(f"{run.root}: the base model in {base.path} is no longer the one that the adapter was trained on.")
    settings = choose_settings(run, recipe, manifest)
    quantization = {key: recipe.trl[key] for key in QUANTIZATION_KEYS}
    tokens = {key: recipe.trl[key] for key in ("pad_token", "eos_token")}
    return Adapter(run.adapter, base, quantization, settings, tokens)


def choose_settings(run: RunDir, recipe: Recipe, manifest: dict[str, Any]) -> GenerationSettings:
    settings = recipe.eval
    penalty = settings.listed_penalty
    words = fit_lexicon(read_split(run, "train")) if penalty else ()
    return GenerationSettings(
        num_beams=settings.num_beams,
        max_new_tokens=settings.max_new_tokens or manifest["longest_answer"],
        batch_size=settings.batch_size,
        listed_penalty=penalty,
        listed_words=words,
        merge_adapter=settings.merge_adapter,
        prefix_caching=settings.prefix_caching,
    )


def download_adapter(name: str, revision: str | None = None) -> Adapter:
    """Download a published adapter; its results.json says how it was evaluated, and so how it is used.

    Raises:
        InputError: it is not there, or is no adapter of this project whose weights, base and prompt are those evaluated.
    """
    from huggingface_hub import snapshot_download

    files = ["adapter_config.json", "adapter_model.safetensors", "results.json"]
    with explain_errors(name, "run or adapter", revision):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    for file in files:
        if not (folder / file).is_file():
            raise RunError(f"{name}: no {file} in this repository. Expected an adapter that this project published.")
    config, results = read_json(folder / "adapter_config.json"), read_json(folder / "results.json")
    try:
        base_name, revision = config["base_model_name_or_path"], config["revision"]
        weights, sha256, prompt = results["base"]["weights"], results["adapter"]["sha256"], results["prompt"]
        settings, quantization = GenerationSettings(**results["generation"]), results["quantization"]
        tokens = results["tokens"]
    except (KeyError, TypeError) as error:
        raise RunError(f"{name}: its results.json or adapter_config.json is not of this project's making ({error}).") from None
    if prompt != TEMPLATE:
        raise RunError(f"{name}: trained with another prompt than sft/prompt.py has. Use the version in its results.json.")
    if sha256 != hash_file(folder / "adapter_model.safetensors"):
        raise RunError(f"{name}: its weights are not those that its results.json was made with (the SHA-256 differs).")
    if fault := find_config_fault(folder / "adapter_config.json", results):
        raise RunError(f"{name}: its adapter_config.json {fault}.")
    try:
        base = resolve_base(base_name, revision)
    except InputError as error:
        kind = HubFailure if isinstance(error, HubFailure) else RunError
        raise kind(f"{name}: its base model: {error}") from None
    if weights != base.weights:
        raise RunError(f"{name}: {base.path} here is not the base model that it was trained on.")
    return Adapter(folder, base, quantization, settings, tokens)


def find_config_fault(path: Path, results: Mapping[str, Any]) -> str | None:
    """Say why an adapter_config.json is not the one that was evaluated, or return None. An older results.json lacks its hash."""
    config, base = read_json(path), results["base"]
    if results["adapter"].get("config_sha256") not in (None, hash_file(path)):
        return "was changed after the evaluation (its SHA-256 differs)"
    if (config.get("base_model_name_or_path"), config.get("revision")) != (base["name"], base["revision"]):
        return "names another base model or revision than results.json"
    return None


def rewrite_texts(
    adapter: Adapter,
    texts: Sequence[str],
    journal: Path,
    tuned: bool = True,
    penalised: bool = True,
    shots: Sequence[Example] = (),
) -> tuple[list[str], float]:
    """Return a rewrite for each text, and the seconds of generation; the model is gone from memory afterwards.

    `tuned` and `penalised`: see `load_rewriter`.

    What a killed call with the same arguments has done lies in the folder `journal`, and is not done again.
    """
    rewriter = load_rewriter(adapter, tuned, penalised)
    label = ("generating" if penalised else "without penalty") if tuned else "few-shot base" if shots else "untuned base"
    files = adapter.describe() if tuned else None
    solved = [(shot.toxic, shot.references[0]) for shot in shots]
    asked = [files, adapter.base.weights, adapter.quantization, rewriter.settings.describe(), TEMPLATE, solved, list(texts)]
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    begin = time.monotonic()
    rewrites = rewriter.rewrite(texts, label, shots, journal / name)
    seconds = time.monotonic() - begin
    del rewriter
    gc.collect()
    return rewrites, seconds


def load_rewriter(adapter: Adapter, tuned: bool = True, penalised: bool = True) -> Rewriter:
    """Load the model on this process's device.

    With `tuned` false it is its base alone, which knows nothing of the training data: its beams pay for no word either.
    With `penalised` false the adapter's do not.
    """
    from sft.check import quiet_libraries

    quiet_libraries()
    folder, device = adapter.folder if tuned else None, join_processes().device
    with explain_base(adapter.base):
        tokenizer = load_tokenizer(adapter.base, **adapter.tokens)
        model = load_finetuned(adapter.base, folder, adapter.quantization, device, adapter.settings.merge_adapter)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked in generation, so any token will do
    settings = adapter.settings
    if not (tuned and penalised):
        settings = replace(settings, listed_penalty=0.0, listed_words=())
    return Rewriter(model, tokenizer, settings)


@contextlib.contextmanager
def explain_base(base: Base) -> Iterator[None]:
    """Turn what goes wrong in the block with a base from the Hub into one clear error.

    Raises:
        HubFailure: the Hub fails.
        RecipeError: the base can't be loaded.
    """
    from huggingface_hub import HfApi

    if base.revision is None:
        yield
        return
    with explain_errors(base.name, "model", base.revision):
        try:
            yield
        except (OSError, RecipeError):
            HfApi().model_info(base.name, revision=base.revision)  # transformers does not tell that the Hub failed
            raise
