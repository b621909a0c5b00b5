"""BLOOM's fused attention and its packed rows against the plain model: the same numbers but for rounding."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY, Main
from rich.console import Console
from transformers import BloomConfig, BloomForCausalLM
from transformers.models.bloom.modeling_bloom import BloomModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import sft.bloom
from sft.bloom import FusedBloomAttention, QuickDropout, SharedBias, fuse, read_positions
from sft.command import tell_once
from sft.data import TokenRows
from sft.model import load_base
from sft.preflight import inspect_recipe
from sft.run_dir import Run
from sft.storage import read_json_lines
from sft.train import Trainer, build_trainer, pack_rows

PAD = 3
CLOSE = {"atol": 2e-5, "rtol": 1e-4}  # float32, after six layers


@pytest.fixture(
    scope="module", params=[4, 6], ids=["4 heads", "6 heads"]
)  # ALiBi's slopes differ off the powers of two
def plain(request: pytest.FixtureRequest) -> BloomForCausalLM:
    torch.manual_seed(0)
    config = BloomConfig(
        vocab_size=97, hidden_size=48, n_layer=6, n_head=request.param, pad_token_id=PAD, eos_token_id=2
    )
    model = BloomForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # also the biases and norms, which begin as zeros and ones
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(params=["in steps", "kernel"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to attend, whatever the size: a GPU takes the kernel alone, a CPU with gradients or few queries never."""
    taken = set()

    def watch(name: str, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *arguments, **options: taken.add(name) or function(*arguments, **options)

    kernel, steps = torch.nn.functional.scaled_dot_product_attention, FusedBloomAttention.attend_in_steps
    monkeypatch.setattr(sft.bloom, "prefers_steps", lambda _: request.param == "in steps")
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch("kernel", kernel))
    monkeypatch.setattr(FusedBloomAttention, "attend_in_steps", watch("in steps", steps))
    yield request.param
    assert taken == {request.param}


def copy_fused(plain: BloomForCausalLM) -> BloomForCausalLM:
    model = copy.deepcopy(plain)
    assert fuse(model)
    return model


def make_batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask (3, 11): rows of 11, 7 and 1 tokens, padded on one side."""
    ids = torch.randint(4, 97, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.stack([torch.arange(11) < length for length in (11, 7, 1)]).long()
    mask = mask if side == "right" else mask.flip(-1)
    return ids.masked_fill(mask == 0, PAD), mask


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients_with_padding(plain: BloomForCausalLM, side: str) -> None:
    ids, mask = make_batch(side)
    fused = copy_fused(plain)
    gradients = []
    for model in (plain, fused):
        model.zero_grad()
        logits = model(ids, attention_mask=mask).logits
        logits[mask.bool()].square().sum().backward()
        gradients.append((logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    (expected, expected_grads), (found, found_grads) = gradients
    assert found.isfinite().all()
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **CLOSE)
    for one, other in zip(expected_grads, found_grads, strict=True):
        scale = one.abs().max()
        torch.testing.assert_close(other / scale, one / scale, **CLOSE)


@pytest.mark.usefixtures("attention")
def test_no_mask_and_attentions(plain: BloomForCausalLM) -> None:
    ids, _ = make_batch("right")
    fused = copy_fused(plain)
    assert any(isinstance(module, FusedBloomAttention) for module in fused.modules())
    with torch.no_grad():
        torch.testing.assert_close(fused(ids).logits, plain(ids).logits, **CLOSE)
        found, expected = fused(ids, output_attentions=True), plain(ids, output_attentions=True)
    torch.testing.assert_close(found.attentions, expected.attentions, **CLOSE)


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_cache(plain: BloomForCausalLM, beams: int) -> None:
    ids, mask = make_batch("left")
    options = {
        "max_new_tokens": 12,
        "num_beams": beams,
        "do_sample": False,
        "pad_token_id": PAD,
        "use_cache": True,
    }
    expected = plain.generate(input_ids=ids, attention_mask=mask, **options)
    assert torch.equal(copy_fused(plain).generate(input_ids=ids, attention_mask=mask, **options), expected)


@pytest.mark.usefixtures("attention")
def test_bfloat16_stays_finite_and_near(plain: BloomForCausalLM) -> None:
    ids, mask = make_batch("left")
    fused = copy_fused(plain)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = fused(ids, attention_mask=mask).logits, plain(ids, attention_mask=mask).logits
    assert found.isfinite().all()
    exact = plain(ids, attention_mask=mask).logits[mask.bool()]
    error, plain_error = ((logits[mask.bool()].float() - exact).abs().mean() for logits in (found, expected))
    assert error < 1.5 * plain_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_masked_row_has_a_softmax_in_powers_of_two(dtype: torch.dtype) -> None:
    mask = torch.zeros(1, 1, 2, 2).masked_fill_(
        torch.tensor([[1, 1], [0, 1]]).bool(), torch.finfo(torch.float32).min
    )
    bias = SharedBias().add(torch.full((4, 1, 2), -20.0), mask, torch.zeros(1, 4, 2, 8, dtype=dtype))
    assert bias.dtype == dtype
    assert (bias * math.log2(math.e)).isfinite().all()
    assert torch.equal(bias.softmax(-1)[0, 0].float(), torch.tensor([[0.5, 0.5], [1.0, 0.0]]))


def make_rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(2)
    rows = [
        torch.randint(4, 97, (length,), generator=generator).tolist() for length in (9, 5, 3, 12, 4, 7, 2)
    ]
    return [{"input_ids": row, "labels": [-100, *row[1:]]} for row in rows]


@pytest.mark.usefixtures("attention")
def test_packed_rows_equal_unpacked_ones(plain: BloomForCausalLM) -> None:
    check_packed_rows(plain, copy_fused(plain))


def test_packed_rows_equal_unpacked_ones_with_eager_attention(plain: BloomForCausalLM) -> None:
    check_packed_rows(plain, copy.deepcopy(plain))


def check_packed_rows(plain: BloomForCausalLM, model: BloomForCausalLM) -> None:
    rows = make_rows()
    packed = pack_rows(rows, 16)
    assert len(packed) < len(rows)
    read_positions(model)
    batch = DataCollatorForLanguageModeling(PAD, return_position_ids=True)(list(packed))
    batch["labels"][batch["attention_mask"] == 0] = -100
    found = model.transformer(
        **{key: value for key, value in batch.items() if key != "labels"}
    ).last_hidden_state
    logits = model.lm_head(found)
    total = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    total.backward()

    plain.zero_grad()
    places = {}
    for line, row in enumerate(packed):
        start = 0
        for length in row["seq_lengths"]:
            places[tuple(row["input_ids"][start : start + length])] = line, start
            start += length
    summed = torch.zeros(())
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        alone = plain(ids).logits[0]
        line, start = places[tuple(row["input_ids"])]
        torch.testing.assert_close(logits[line, start : start + len(alone)], alone, **CLOSE)
        summed = summed + torch.nn.functional.cross_entropy(alone[:-1], labels[1:], reduction="sum")
    summed.backward()
    torch.testing.assert_close(total, summed, **CLOSE)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        scale = one.grad.abs().max()
        torch.testing.assert_close(other.grad / scale, one.grad / scale, **CLOSE)


@pytest.mark.usefixtures("attention")
def test_no_text_reaches_its_neighbour(plain: BloomForCausalLM) -> None:
    model = copy_fused(plain)
    read_positions(model)
    ids = torch.randint(4, 97, (1, 12), generator=torch.Generator().manual_seed(3))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2]])
    with torch.no_grad():
        before = model.transformer(ids, position_ids=positions).last_hidden_state
        ids[0, [0, 1, 2, 3, 9, 10, 11]] = 50
        after = model.transformer(ids, position_ids=positions).last_hidden_state
    torch.testing.assert_close(after[:, 4:9], before[:, 4:9], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(after[:, :4], before[:, :4], atol=1e-3)


def test_a_model_that_computes_in_slices_is_left_alone(
    plain: BloomForCausalLM, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_once.cache_clear()
    model = copy.deepcopy(plain)
    model.config.slow_but_exact = True
    assert not fuse(model)
    assert not fuse(model)
    assert capsys.readouterr().err.count("eager attention in place of the fused one") == 1
    assert not any(isinstance(module, FusedBloomAttention) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_keeps_share_and_mean(dtype: torch.dtype, p: float) -> None:
    dropout, ones = QuickDropout(p), torch.ones(999, 1001, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    output = dropout(ones)
    output.sum().backward()
    assert torch.equal(ones.grad, output)
    kept = (output != 0).float()
    assert kept.mean().item() == pytest.approx(
        1 - p, abs=0.002
    )  # four standard deviations of a million draws
    assert output.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=0.003)  # bfloat16 has three digits
    assert (kept[:, 1:] * kept[:, :-1]).mean().item() == pytest.approx(
        (1 - p) ** 2, abs=0.003
    )  # neighbours are independent
    torch.manual_seed(0)
    assert torch.equal(dropout(ones), output)
    assert torch.equal(dropout.eval()(ones), ones)


def read_losses(root: Path) -> torch.Tensor:
    return torch.tensor([line["loss"] for line in read_json_lines(Run(root).log_path) if "loss" in line])


def test_packing_by_recipe(mini_base: Path, small_data: Path, call_main: Main, tmp_path: Path) -> None:
    words = [
        "recipes/tiny.yaml",
        "--model_name_or_path",
        mini_base,
        "--data.source",
        small_data,
        "--max_steps",
        3,
    ]
    call_main(
        "sft.run", *words, "--packing", "--max_length", 96, "--logging_steps", 1, "--output_dir", tmp_path
    )
    assert len(read_losses(tmp_path)) == 3


def build_packing_trainer(mini_base: Path, small_data: Path, folder: Path) -> tuple[Trainer, TokenRows]:
    """Return the tiny recipe's trainer with `packing: true`, in float32, with a random adapter and all rows in one batch.

    With it come the rows before they were packed.
    """
    words = [
        "--model_name_or_path",
        mini_base,
        "--data.source",
        small_data,
        "--data.swaps",
        0,
        "--data.inserts",
        0,
    ]
    words += [
        "--packing",
        "true",
        "--max_length",
        200,
        "--per_device_train_batch_size",
        500,
        "--lora_dropout",
        0,
    ]
    words += ["--bf16", "false", "--dtype", "float32", "--use_cpu", "true", "--output_dir", folder]
    preflight = inspect_recipe(str(TINY), [str(word) for word in words])
    model = load_base(preflight.recipe, preflight.base)
    trainer = build_trainer(preflight, model, Run(folder), None, Console(stderr=True))
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # else LoRA's B is zero, and its A counts for nothing
            parameter.data = torch.randn_like(parameter) * 0.1
    return trainer, preflight.tokens["train"]


@pytest.mark.usefixtures("attention")
def test_trainers_packed_loss_is_that_of_each_row_alone(
    mini_base: Path, small_data: Path, tmp_path: Path
) -> None:
    trainer, unpacked = build_packing_trainer(mini_base, small_data, tmp_path)
    (batch,), tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    assert len(batch["input_ids"]) < len(unpacked.rows) / 2
    with torch.no_grad():
        packed = trainer.compute_loss(trainer.model, batch, num_items_in_batch=tokens)
        trainer.model.get_base_model().base_model.__class__ = BloomModel  # plain, as without packing
        total, labelled = 0.0, 0
        for row in unpacked.rows:
            alone = DataCollatorForLanguageModeling(PAD)([row])
            scored = (alone["labels"] != -100).sum()
            total += float(trainer.compute_loss(trainer.model, alone, num_items_in_batch=scored) * scored)
            labelled += int(scored)
    assert labelled == tokens
    assert float(packed) == pytest.approx(total / labelled, rel=1e-5)


@pytest.mark.usefixtures("attention")
def test_trainers_packed_loss_does_not_hear_the_neighbour(
    mini_base: Path, small_data: Path, tmp_path: Path
) -> None:
    trainer, _ = build_packing_trainer(mini_base, small_data, tmp_path)
    row = next(row for row in trainer.train_dataset if len(row["seq_lengths"]) == 3)
    start, end = row["seq_lengths"][0], sum(row["seq_lengths"][:2])
    others = row["labels"][:start] + [-100] * (end - start) + row["labels"][end:]
    changed = row["input_ids"][:start] + row["input_ids"][start:end][::-1] + row["input_ids"][end:]

    def compute_loss(ids: list[int], labels: list[int]) -> float:
        batch = trainer.data_collator([row | {"input_ids": ids, "labels": labels}])
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model, batch))

    assert compute_loss(changed, others) == pytest.approx(compute_loss(row["input_ids"], others), rel=1e-6)
    assert compute_loss(changed, row["labels"]) != pytest.approx(
        compute_loss(row["input_ids"], row["labels"]), rel=1e-3
    )


@pytest.mark.slow
def test_loss_curves_of_fast_and_plain_paths_agree(
    mini_base: Path, small_data: Path, call_main: Main, tmp_path: Path
) -> None:
    """50 steps of QLoRA on the same batches."""
    words = [
        "recipes/tiny.yaml",
        "--model_name_or_path",
        mini_base,
        "--data.source",
        small_data,
        "--max_steps",
        50,
    ]
    words += ["--logging_steps", 1, "--eval_strategy", "no", "--save_strategy", "no", "--lora_dropout", 0]
    for name, extra in {"eager": ["--attn_implementation", "eager"], "sdpa": []}.items():
        call_main("sft.run", *words, "--output_dir", tmp_path / name, *extra)
    eager, fused = read_losses(tmp_path / "eager"), read_losses(tmp_path / "sdpa")
    assert len(eager) == 50
    assert eager[-5:].mean() < eager[:5].mean() - 0.1  # it learns
    torch.testing.assert_close(fused, eager, atol=0.02, rtol=0.01)  # bfloat16 has three digits
