"""XCOMET-lite: how well an output fits its source and a reference, as a whole and by the errors in it.

Guerreiro et al., xCOMET: Transparent Machine Translation Evaluation through Fine-grained Error Detection,
TACL 2024; Larionov et al., xCOMET-lite, EMNLP 2024: github.com/NL2G/xCOMET-lite. The scores are those of
unbabel-comet 2.2.1 with the class of PAN's evaluation (github.com/pan-webis-de/pan-code,
clef25/text-detoxification/evaluation/metrics/fluency).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from sft.command import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULTS = {"hidden_sizes": (3072, 1024), "word_layer": 8}  # where config.json does not say
SCORE_WEIGHTS = (0.12, 0.33, 0.33)  # of the output with its source, with the reference, with both
LABEL_WEIGHTS = (0.1667, 0.3333, 0.5)  # the same
SPAN_WEIGHT = 0.22  # of the errors
PENALTIES, WORST = (0, 1, 5, 10), 25  # no error, minor, major, critical: MQM
BATCH = 32  # rows


class QualityModel(nn.Module):
    """An encoder, a regression on its mixed layers' first token, and a tagger of errors; named as saved."""

    def __init__(self, encoder: "PreTrainedModel", hidden_sizes: Sequence[int], word_layer: int) -> None:
        super().__init__()
        size, (first, second), self.word_layer = encoder.config.hidden_size, hidden_sizes, word_layer
        weights = [nn.Parameter(torch.zeros(1)) for _ in range(encoder.config.num_hidden_layers + 1)]
        self.encoder = nn.ModuleDict({"model": encoder})
        self.layerwise_attention = nn.Module()
        self.layerwise_attention.scalar_parameters = nn.ParameterList(weights)
        self.layerwise_attention.gamma = nn.Parameter(torch.ones(1))
        layers = [
            (nn.Linear(inner, outer), nn.Tanh(), nn.Dropout())
            for inner, outer in ((size, first), (first, second))
        ]
        self.estimator = nn.ModuleDict({"ff": nn.Sequential(*layers[0], *layers[1], nn.Linear(second, 1))})
        self.hidden2tag = nn.Linear(size, len(PENALTIES))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores, shape (rows,), at most 1, and label probabilities, shape (rows, tokens, labels)."""
        states = self.encoder["model"](input_ids, attention_mask, output_hidden_states=True).hidden_states
        weights = torch.cat(list(self.layerwise_attention.scalar_parameters)).softmax(0)
        mixed = self.layerwise_attention.gamma * sum(
            w * state[:, 0] for w, state in zip(weights, states, strict=True)
        )
        return self.estimator["ff"](mixed).squeeze(-1).clamp(max=1), self.hidden2tag(
            states[self.word_layer]
        ).softmax(-1)


class Xcomet:
    """XCOMET-lite with its tokenizer."""

    def __init__(self, name: str, encoder: str, commits: Mapping[str, str]) -> None:
        """Load a checkpoint of PyTorchModelHubMixin; configuration and tokenizer are those of `encoder`.

        Raises:
            InputError: the weights are not those of an XCOMET-lite.
            OSError: a file is not there.
        """
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModel
        from transformers.utils import cached_file

        weights = load_file(cached_file(name, "model.safetensors", revision=commits[name]))
        path = cached_file(
            name, "config.json", revision=commits[name], _raise_exceptions_for_missing_entries=False
        )
        settings = DEFAULTS | (json.loads(Path(path).read_text(encoding="utf-8")) if path else {})
        config = AutoConfig.from_pretrained(encoder, revision=commits[encoder], trust_remote_code=False)
        bare = AutoModel.from_config(config, trust_remote_code=False)
        model = QualityModel(bare, settings["hidden_sizes"], settings["word_layer"])
        try:
            model.load_state_dict({key: weights[key] for key in model.state_dict() if key in weights})
        except RuntimeError as error:
            reason = str(error).split("\n\t")[1][:200]  # the first weight or list of weights
            raise InputError(f"{name} is no XCOMET-lite on {encoder}: {reason}") from None
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.tokenizer = load_tokenizer(encoder, commits[encoder])
        self.longest = config.max_position_embeddings - 2  # tokens

    def estimate(
        self, sources: Sequence[str], outputs: Sequence[str], references: Sequence[str]
    ) -> np.ndarray:
        """Return the score of each output, shape (rows,): at most 1, with no lower bound."""
        parts = []
        for start in range(0, len(outputs), BATCH):
            batch = (self.tokenise(texts[start : start + BATCH]) for texts in (sources, outputs, references))
            parts.append(self.score_rows(*batch))
        return np.concatenate(parts)

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        limit = self.longest - 4  # its [CLS] and [SEP], and two more, as unbabel-comet counts
        return self.tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=limit)[
            "input_ids"
        ]

    def score_rows(
        self, sources: list[list[int]], outputs: list[list[int]], references: list[list[int]]
    ) -> np.ndarray:
        inputs = [
            self.join(outputs, sources),
            self.join(outputs, references),
            self.join(outputs, sources, references),
        ]
        with torch.inference_mode():
            scores, labels = zip(*(self.model(**joined) for joined in inputs), strict=True)
        tokens = max(map(len, outputs)) + 2
        marked = (
            sum(weight * part[:, :tokens] for weight, part in zip(LABEL_WEIGHTS, labels, strict=True))
            .argmax(-1)
            .tolist()
        )
        spans = [score_spans(row[: len(output) + 2]) for row, output in zip(marked, outputs, strict=True)]
        score = sum(weight * part for weight, part in zip(SCORE_WEIGHTS, scores, strict=True))
        return score.cpu().numpy() + SPAN_WEIGHT * np.array(spans)

    def join(self, *texts: list[list[int]]) -> dict[str, torch.Tensor]:
        """Return the rows `[CLS] text [SEP] text [SEP] …`, cut and padded, of shape (rows, tokens)."""
        first, last, blank = (
            self.tokenizer.cls_token_id,
            self.tokenizer.sep_token_id,
            self.tokenizer.pad_token_id,
        )
        rows = [
            [first, *(token for text in row for token in [*text, last] if token != blank)]
            for row in zip(*texts, strict=True)
        ]
        inputs = {"input_ids": [row[: self.longest] for row in rows]}
        return self.tokenizer.pad(inputs, return_tensors="pt").to(self.model.hidden2tag.weight.device)


def score_spans(labels: Sequence[int]) -> float:
    """Return the MQM score of an output by its tokens' labels, indices of PENALTIES: from 0, worst, to 1.

    A span of errors counts as its first token. One that runs to the last token does not count, as in
    unbabel-comet.
    """
    penalty = span = 0
    for label in labels:
        span = span or PENALTIES[label]
        if not label:
            penalty, span = penalty + span, 0
    return 1 - min(penalty, WORST) / WORST


def load_tokenizer(name: str, revision: str) -> "PreTrainedTokenizerBase":
    """Return a DeBERTa's tokenizer with its spm.model's normalisation, which transformers 5 leaves out."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Regex, normalizers
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    model = ModelProto.FromString(Path(cached_file(name, "spm.model", revision=revision)).read_bytes())
    table = model.normalizer_spec.precompiled_charsmap
    mapped = [normalizers.Precompiled(table)] if table else []
    steps = [normalizers.Strip(), *mapped, normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer
