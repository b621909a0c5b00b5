"""Texts -> rewritten texts: batched by length, over all processes, with a model from a run or the Hub."""

import contextlib
import copy
import gc
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from eval.adapter import Adapter, GenerationSettings
from eval.lengths import refuse_long
from eval.standalone import AdapterError, add_adapter, decode_answer, generate, load_base, load_tokenizer
from sft.command import InputError, RunError, count, tell_once
from sft.data import Example, clean_text, tokenise_texts
from sft.hub import explain_errors, first_line
from sft.machine import has_bfloat16, join_processes
from sft.model import Base, find_positions, load_config
from sft.prompt import TEMPLATE, format_prompt
from sft.schema import RecipeError
from sft.storage import write_text

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.utils import GenerateOutput

LOGITS = 2**26  # at once, where likelihoods are measured: 256 MB
# Architectures that are tested with it (tests/eval/test_eval.py).
PREFIX_CACHING = ("bloom", "gpt2", "gpt_neox", "llama", "opt", "phi", "qwen2")


@dataclass(frozen=True)
class Rewriter:
    """A loaded model that rewrites texts."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    settings: GenerationSettings

    def rewrite(
        self,
        texts: Sequence[str],
        progress_label: str | None = None,
        shots: Sequence[Example] = (),
        journal: Path | None = None,
    ) -> list[str]:
        """Return a rewrite for each text, in order, on every process; an empty text gives an empty rewrite.

        An answer is trimmed and otherwise left as the model gave it. Batches are formed before they are dealt
        out to the processes, so that the same texts share a batch, and its padding, whatever the number of
        processes.

        Args:
            texts: of any length; white space in them is made plain.
            progress_label: shows a progress bar of that name on the main process, or a line where there is no
                terminal.
            shots: solved before each text, with the first of their rewrites.
            journal: a folder of this call's own, where each batch is kept once it is done: what a killed call
                has done is not done again.
        """
        solved = self.tokenise_shots(shots)
        # With shots, prompts are about that many times as long.
        size = max(1, self.settings.batch_size // (1 + len(shots)))
        prompts = {index: solved + ids for index, ids in self.tokenise_prompts(texts).items()}
        refuse_long(texts, prompts, find_positions(self.model), self.settings.max_new_tokens)
        work = partial(
            self.generate_batch, prefix=self.cache_prefix(prompts.values(), solved) if prompts else None
        )
        rewrites = share_batches(prompts, work, size, progress_label, journal)
        return [rewrites.get(index, "") for index in range(len(texts))]

    def tokenise_prompts(self, texts: Sequence[str]) -> dict[int, list[int]]:
        """Return the token ids of each text's prompt, by the text's place; an empty text has none."""
        prompts = {index: format_prompt(text) for index, text in enumerate(map(clean_text, texts)) if text}
        return dict(zip(prompts, tokenise_texts(list(prompts.values()), self.tokenizer), strict=True))

    def tokenise_shots(self, shots: Sequence[Example]) -> list[int]:
        """Return the token ids of prompts with their answers, each with its end."""
        prompts = tokenise_texts([format_prompt(shot.toxic) for shot in shots], self.tokenizer)
        answers = tokenise_texts([shot.references[0] for shot in shots], self.tokenizer, is_start=False)
        end = [self.tokenizer.eos_token_id]
        return [token for pair in zip(prompts, answers, strict=True) for token in (*pair[0], *pair[1], *end)]

    def cache_prefix(self, prompts: Iterable[Sequence[int]], solved: Sequence[int]) -> "DynamicCache | None":
        """Return the key-value cache of what all `prompts` begin with: `solved` shots, and the instruction.

        None where the recipe says so, and, with a line, for models that were not tested with it: padding then
        lies between beginning and rest, and some count it as distance. Two prompts of our own bound the
        beginning, so that it is the same for one text and for many, as long as none merges with the newline
        before it.
        """
        import torch
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        if not self.settings.prefix_caching:
            return None
        others = [
            [*solved, *ids]
            for ids in tokenise_texts([format_prompt("a"), format_prompt("?")], self.tokenizer)
        ]
        same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*others, *prompts, strict=False))
        shared = [tokens[0] for tokens in same]
        kind = self.model.config.model_type
        if shared and kind in PREFIX_CACHING and not self.model.generation_config.cache_implementation:
            cache = self.fill_cache(torch.tensor([shared]), torch.ones(1, len(shared), dtype=torch.long))
            if isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers):
                return cache
        tell_once(
            f"{kind}: no prefix caching, "
            f"which is for {', '.join(PREFIX_CACHING)} with a cache that keeps every token"
        )
        return None

    def fill_cache(
        self, ids: "torch.Tensor", mask: "torch.Tensor", cache: "DynamicCache | None" = None
    ) -> Any:
        """Return the cache with the keys and values of all tokens; ids and mask are (prompts, tokens)."""
        return self.generate(
            ids, mask, cache, num_beams=1, max_new_tokens=1, return_dict_in_generate=True
        ).past_key_values

    def generate(
        self, ids: "torch.Tensor", mask: "torch.Tensor", cache: "DynamicCache | None", **options: Any
    ) -> Any:
        """Return what `eval.standalone.generate` does; what is in the cache is not computed again."""
        return generate(self.model, self.tokenizer, ids, mask, past_key_values=cache, **options)

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], prefix: "DynamicCache | None" = None
    ) -> list[str]:
        """Return each prompt's trimmed answer; prompts are token ids, and begin with what `prefix` holds."""
        output = self.search(prompts, prefix, self.settings.num_beams)
        return [
            decode_answer(self.tokenizer, row)
            for row in output.sequences[:, max(map(len, prompts)) :].tolist()
        ]

    def propose(
        self, texts: Sequence[str], beams: int, label: str | None = None, journal: Path | None = None
    ) -> list[list[str]]:
        """Return for each text what its `beams` end in, most likely first, each once; see `rewrite`.

        An answer that is not finished at the longest length is left out.
        """
        prompts = self.tokenise_prompts(texts)
        prefix = self.cache_prefix(prompts.values(), ()) if prompts else None

        def propose_batch(batch: Sequence[Sequence[int]]) -> list[list[str]]:
            output = self.search(batch, prefix, beams, num_return_sequences=beams)
            rows = output.sequences[:, max(map(len, batch)) :].tolist()
            ended = [
                decode_answer(self.tokenizer, row) if self.tokenizer.eos_token_id in row else ""
                for row in rows
            ]
            return [
                [text for text in dict.fromkeys(ended[start : start + beams]) if text]
                for start in range(0, len(rows), beams)
            ]

        found = share_batches(prompts, propose_batch, self.settings.batch_size, label, journal)
        return [found.get(index, []) for index in range(len(texts))]

    def measure_likelihood(
        self, pairs: Sequence[tuple[str, str]], label: str | None = None, journal: Path | None = None
    ) -> list[float]:
        """Return each (text, rewrite)'s log-likelihood: the mean of the rewrite's tokens and end, in nats."""
        prompts = tokenise_texts([format_prompt(clean_text(text)) for text, _ in pairs], self.tokenizer)
        answers = tokenise_texts([answer for _, answer in pairs], self.tokenizer, is_start=False)
        end = [self.tokenizer.eos_token_id]
        # The place of the answer's first token goes before the tokens: a batch is told apart by length alone.
        rows = {
            index: [len(prompt), *prompt, *answer, *end]
            for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        }
        found = share_batches(rows, self.score_batch, self.settings.batch_size, label, journal)
        return [found[index] for index in range(len(pairs))]

    def score_batch(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Return the mean log-likelihood of each row's answer.

        A row is the answer's first place, then prompt and answer.
        """
        import torch

        width, first = max(map(len, rows)) - 1, min(row[0] for row in rows)
        at_once = max(1, LOGITS // ((width - first + 1) * len(self.tokenizer)))
        if len(rows) > at_once:
            return [
                score
                for start in range(0, len(rows), at_once)
                for score in self.score_batch(rows[start : start + at_once])
            ]
        # Padding stands behind, where no token of the answer looks.
        ids = torch.tensor(
            [[*row[1:], *[self.tokenizer.pad_token_id] * (width + 1 - len(row))] for row in rows]
        )
        mask = torch.tensor([[1] * (len(row) - 1) + [0] * (width + 1 - len(row)) for row in rows])
        with torch.inference_mode():
            output = self.model(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                logits_to_keep=width - first + 1,
                use_cache=False,
            )
        told = (
            output.logits[:, :-1]
            .float()
            .log_softmax(-1)
            .gather(-1, ids[:, first:, None].to(output.logits.device))[..., 0]
        )
        return [
            round(float(scores[row[0] - first : len(row) - 1 - first].mean()), 4)
            for row, scores in zip(rows, told.cpu(), strict=True)
        ]

    def search(
        self, prompts: Sequence[Sequence[int]], prefix: "DynamicCache | None", beams: int, **options: Any
    ) -> "GenerateOutput":
        """Return what `generate` found; answers in its `sequences` begin behind the longest prompt's width.

        Padding lies between what `prefix` holds and the rest of a prompt, which the answer follows directly.
        """
        import torch

        start, width = 0 if prefix is None else prefix.get_seq_length(), max(map(len, prompts))
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
        options |= {"num_beams": beams, "max_new_tokens": self.settings.max_new_tokens}
        return self.generate(ids, mask, cache, return_dict_in_generate=True, **options)


def share_batches(
    prompts: Mapping[int, Sequence[int]],
    work: Callable[[list[Sequence[int]]], Sequence[Any]],
    size: int,
    label: str | None,
    journal: Path | None,
) -> dict[int, Any]:
    """Return what `work` makes of each prompt (token ids), on every process.

    `work` gets up to `size` prompts of like length at a time. Batches are formed before they are dealt out to
    the processes, so that the same prompts share a batch, and its padding, whatever the number of processes.
    `label` and `journal` are those of `Rewriter.rewrite`; answers are JSON values.
    """
    from accelerate.utils import gather_object

    state = join_processes()
    order = sorted(prompts, key=lambda index: (-len(prompts[index]), index))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    done = read_journal(journal)
    with (
        make_progress(label if state.is_main_process else None, len(prompts)) as progress,
        open_journal(journal, state.process_index) as stream,
    ):
        for batch in progress.track(
            batches[state.process_index :: state.num_processes], description=label or ""
        ):
            if not done.keys() >= set(batch):
                answers = dict(zip(batch, work([prompts[index] for index in batch]), strict=True))
                done |= answers
                if stream:
                    stream.write(json.dumps(answers) + "\n")
                    stream.flush()
    return dict(gather_object(list(done.items())))


def read_journal(folder: Path | None) -> dict[int, Any]:
    """Return the answers that calls with the same journal have kept, by the place of their text."""
    done: dict[int, Any] = {}
    # The pattern leaves out what another process is about to write.
    for path in sorted(folder.glob("[0-9]*.jsonl")) if folder else ():
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
    """Return a progress bar, shown only with a label; without a terminal for it, a line says what is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sft.terminal import Terminal

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Terminal(stderr=True)
    if label is not None and not console.is_terminal:
        console.print(f"{label}: {count(number, 'sentence')}", highlight=False)
    return Progress(
        *columns, console=console, disable=label is None or not console.is_terminal, transient=True
    )


def rewrite_texts(
    adapter: Adapter,
    texts: Sequence[str],
    journal: Path,
    tuned: bool = True,
    shots: Sequence[Example] = (),
) -> tuple[list[str], float]:
    """Return a rewrite for each text, and the seconds of generation; the model leaves memory afterwards.

    With `tuned` false it is the base's, without the adapter.

    What a killed call with the same arguments has done lies in the folder `journal`, and is not done again.
    """
    rewriter = load_rewriter(adapter, tuned)
    label = "generating" if tuned else "few-shot base" if shots else "untuned base"
    solved = [(shot.toxic, shot.references[0]) for shot in shots]
    name = name_journal(adapter, tuned, solved, list(texts))
    begin = time.monotonic()
    rewrites = rewriter.rewrite(texts, label, shots, journal / name)
    seconds = time.monotonic() - begin
    del rewriter
    gc.collect()
    return rewrites, seconds


def name_journal(adapter: Adapter, tuned: bool, *asked: Any) -> str:
    """Return a journal's name: a hash of all that its answers depend on; `asked` are JSON values."""
    parts: list[Any] = [adapter.hashes if tuned else None, adapter.base.describe(), adapter.quantization]
    parts += [adapter.settings.describe(), TEMPLATE, *asked]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_rewriter(adapter: Adapter, tuned: bool = True) -> Rewriter:
    """Load the model on this process's device; with `tuned` false, its base alone."""
    from sft.command import quiet_libraries

    quiet_libraries()
    folder, device = adapter.folder if tuned else None, join_processes().device
    with explain_base(adapter.base):
        tokenizer = load_tokenizer(adapter.base.path, adapter.base.revision, **adapter.tokens)
        model = load_model(adapter.base, folder, adapter.quantization, device, adapter.settings.merge_adapter)
    return Rewriter(model, tokenizer, adapter.settings)


UNMERGED = "the LoRA is on an embedding whose weights the LM head shares: merged, it would change both."


def shares_embedding(model: "PeftModel") -> bool:
    """Say whether a LoRA is on the input or output embedding of a base that has one matrix for both."""
    if not model.config.tie_word_embeddings:
        return False
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return any(hasattr(end, "base_layer") for end in ends)


def load_model(
    base: Base,
    adapter: Path | None,
    quantization: Mapping[str, Any],
    device: "torch.device",
    merge: bool = True,
) -> "PreTrainedModel":
    """Load a base for generation, with an adapter, or without one as it was before the training.

    `quantization` is that of `eval.adapter.Adapter`, as in the recipe. With `merge`, the adapter is merged
    into a base that is not quantised; on a CPU a quantised one is turned back into float32 for it, so that
    generation need not dequantise each weight for each token. What is then not quantised is computed, on a
    CPU that can, in the recipe's bfloat16, as the training was, unless attention is `eager`. Without `merge`
    the adapter stays beside its base.
    """
    from sft.bloom import fuse

    quantised = quantization["load_in_4bit"] or quantization["load_in_8bit"]
    attention = quantization.get("attn_implementation")
    is_bloom = load_config(base).model_type == "bloom"
    on_cpu = device.type == "cpu"
    model = load_base(
        base.path,
        base.revision,
        quantization,
        dtype="float32" if on_cpu and not quantised else quantization["dtype"],
        device_map={"": device} if quantised else None,
        attn_implementation=None if is_bloom else attention,
    )
    if attention != "eager":
        fuse(model)
    in_bits = quantised and not (on_cpu and merge)
    if quantised and not in_bits:
        model = model.dequantize().float()
    if adapter is not None:
        model = add_adapter(model, adapter)
        if merge and not in_bits and shares_embedding(model):
            tell_once(f"{adapter}: {UNMERGED} The adapter stays beside its base, unmerged.")
        elif merge and not in_bits:
            model = model.merge_and_unload()
        elif merge:
            tell_once(f"{base.name}: in 4 or 8 bit on this device, so the adapter stays beside it, unmerged")
    in_bfloat16 = attention != "eager" and quantization["dtype"] == "bfloat16"
    if on_cpu and not in_bits and in_bfloat16 and has_bfloat16():
        model = model.bfloat16()
        # Of a view such as a batch's last positions, PyTorch's product copies the weights once a row.
        model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    # A base that was saved after its training may say no.
    model.config.use_cache = model.generation_config.use_cache = True
    return model.eval() if in_bits else model.to(device).eval()


@contextlib.contextmanager
def explain_base(base: Base) -> Iterator[None]:
    """Turn what goes wrong in the block with a base into one clear error.

    Raises:
        HubFailure: the Hub fails.
        RecipeError: the base can't be loaded.
    """
    from huggingface_hub import HfApi

    with explain_errors(base.name, "model", base.revision):
        try:
            yield
        except AdapterError as error:
            raise RunError(f"{error} Expected the adapter that was trained.") from None
        except (OSError, ValueError) as error:
            if base.revision is not None:
                HfApi().model_info(
                    base.name, revision=base.revision
                )  # transformers does not tell that the Hub failed
            if isinstance(error, InputError):
                raise
            raise RecipeError(
                f"{base.name}: it can't be loaded: {first_line(error)}", "model_name_or_path"
            ) from None
