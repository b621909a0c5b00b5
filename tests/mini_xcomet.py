"""A miniature XCOMET-lite, checkpoint and encoder, in the published formats, with fixed weights: its scores are pinned.

Nothing of this project is used: the reference implementation reads the same files.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SIZE, INNER, LAYERS, HIDDEN, LABELS, LONGEST = 16, 24, 3, (12, 8), 4, 40
WORDS = [
    "▁the",
    "▁a",
    "▁plan",
    "▁is",
    "▁good",
    "▁bad",
    "▁day",
    "▁what",
    "▁you",
    "▁idiot",
    "▁really",
    "ing",
    "ed",
    "ly",
    "...",
]
PIECES = [
    ("[PAD]", 3),
    ("[CLS]", 3),
    ("[SEP]", 3),
    ("[UNK]", 2),
    *((text, 1) for text in [*WORDS, "▁", *"abcdefghijklmnopqrstuvwxyz.,!"]),
]
VOCABULARY = len(PIECES) + 1  # and [MASK], which the tokenizer adds


def list_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each weight that unbabel-comet saves and uses."""
    yield "encoder.model.embeddings.word_embeddings.weight", (VOCABULARY, SIZE)
    yield "encoder.model.encoder.rel_embeddings.weight", (16, SIZE)
    for name in ("embeddings", "encoder"):
        yield from ((f"encoder.model.{name}.LayerNorm.{kind}", (SIZE,)) for kind in ("weight", "bias"))
    for layer in range(LAYERS):
        place = f"encoder.model.encoder.layer.{layer}."
        parts = [
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.output.dense",
        ]
        linears = [
            *((part, SIZE, SIZE) for part in parts),
            ("intermediate.dense", INNER, SIZE),
            ("output.dense", SIZE, INNER),
        ]
        for part, outer, inner in linears:
            yield from ((f"{place}{part}.weight", (outer, inner)), (f"{place}{part}.bias", (outer,)))
        for part in ("attention.output", "output"):
            yield from ((f"{place}{part}.LayerNorm.{kind}", (SIZE,)) for kind in ("weight", "bias"))
    yield from ((f"layerwise_attention.scalar_parameters.{layer}", (1,)) for layer in range(LAYERS + 1))
    yield "layerwise_attention.gamma", (1,)
    heads = zip(
        ("estimator.ff.0", "estimator.ff.3", "estimator.ff.6", "hidden2tag"),
        (*HIDDEN, 1, LABELS),
        (SIZE, *HIDDEN, SIZE),
        strict=True,
    )
    for name, outer, inner in heads:
        yield from ((f"{name}.weight", (outer, inner)), (f"{name}.bias", (outer,)))


def make_xcomet(checkpoint: Path, encoder: Path) -> None:
    """Write both folders."""
    import torch
    from safetensors.torch import save_file
    from sentencepiece import SentencePieceNormalizer
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    weights = {}
    for number, (name, shape) in enumerate(list_shapes()):
        scale = 0.1 if "bias" in name else 0.4 if "LayerNorm" in name else 1
        values = scale * np.random.RandomState(number).uniform(
            -1, 1, shape
        )  # a stream that numpy keeps as it is
        weights[name] = torch.from_numpy(values + ("LayerNorm.weight" in name)).float()
    weights["hidden2tag.bias"] = torch.tensor([3.0, 1.0, -1.5, 0.0])  # all labels occur
    for name in ("dropout_mask", "dropout_fill"):
        weights[f"layerwise_attention.{name}"] = torch.zeros(LAYERS + 1)
    weights["wordloss.weight"] = torch.ones(LABELS)
    checkpoint.mkdir(parents=True)
    save_file(weights, checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text(json.dumps({"hidden_sizes": HIDDEN, "word_layer": 2}))

    model = ModelProto.FromString(SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto())
    for number, (text, kind) in enumerate(PIECES):
        model.pieces.add(piece=text, score=-0.5 * number if kind == 1 else 0, type=kind)
    model.trainer_spec.model_type, model.trainer_spec.unk_id, model.trainer_spec.unk_piece = 1, 3, "[UNK]"
    encoder.mkdir(parents=True)
    (encoder / "spm.model").write_bytes(model.SerializeToString())
    (encoder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    config = {
        "model_type": "deberta-v2", "hidden_size": SIZE, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": LONGEST, "position_buckets": 8,
        "relative_attention": True, "share_att_key": True, "norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p",
        "position_biased_input": False, "type_vocab_size": 0, "max_relative_positions": -1, "layer_norm_eps": 1e-7,
    }  # fmt: skip
    (encoder / "config.json").write_text(json.dumps(config))
