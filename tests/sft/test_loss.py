"""The loss on a CPU, held against TRL's own."""

from pathlib import Path

import pytest
import torch
import trl.trainer.utils
from transformers import AutoModelForCausalLM
from trl.kernels import ChunkedLogProbFunction

import sft.loss
from sft.command import tell_once
from sft.loss import FrozenHeadLogProbs, LogProbs, choose_loss

OUTPUTS = ("log_probs", "entropy", "is_top1")


def test_labelled_positions_alone_give_trls_loss_and_gradient(
    mini_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spy(LogProbs):
        @staticmethod
        def apply(hidden: torch.Tensor, *arguments: object) -> object:
            scored.append(len(hidden))
            return LogProbs.apply(hidden, *arguments)  # type: ignore[arg-type]

    scored: list[int] = []
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda _: False)
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", ChunkedLogProbFunction)
    monkeypatch.setattr(sft.loss, "LogProbs", Spy)
    model = AutoModelForCausalLM.from_pretrained(mini_base)
    trl.trainer.utils.add_fused_lm_head(model, outputs=OUTPUTS)
    model.get_output_embeddings().weight = torch.nn.Parameter(
        model.lm_head.weight.detach().clone(), requires_grad=False
    )
    ids = torch.arange(4, 84).reshape(4, 20)
    labels = ids.masked_fill(torch.arange(20) < 13, -100)
    labels[3] = -100  # a row without a label
    found = []
    for plain_loss in (True, False):
        choose_loss(plain_loss)
        model.zero_grad()
        output = model(input_ids=ids, labels=labels, fused_lm_head=True)
        output.loss.backward()
        found.append((output, [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]))
    (plain, gradients), (labelled, same_gradients) = found
    assert scored == [3 * 7]
    torch.testing.assert_close(labelled.loss, plain.loss)
    torch.testing.assert_close(labelled.entropy, plain.entropy)
    assert torch.equal(labelled.is_top1, plain.is_top1)
    torch.testing.assert_close(same_gradients, gradients)


@pytest.mark.parametrize("block", [1, 2**27])
def test_bfloat16_is_as_near_the_exact_gradient_as_trls(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft.loss, "LOGITS_BYTES", block)
    torch.manual_seed(0)
    weight, start = torch.randn(3000, 64), torch.randn(40, 64)
    targets, upstream = torch.randint(0, 3000, (40,)), torch.rand(40)

    def differentiate(function: type, dtype: torch.dtype) -> torch.Tensor:
        hidden = start.bfloat16().to(dtype).requires_grad_()
        arguments = hidden, weight.bfloat16().to(dtype), None, targets, 1.0, 512, None, 1.0, OUTPUTS
        function.apply(*arguments)[0].backward(upstream)
        return hidden.grad.double()

    hidden = start.bfloat16().double().requires_grad_()
    scores = (hidden @ weight.bfloat16().double().mT).log_softmax(-1)
    scores[torch.arange(40), targets].backward(upstream.double())
    torch.testing.assert_close(differentiate(LogProbs, torch.float32), hidden.grad, rtol=1e-4, atol=1e-4)
    error = (differentiate(LogProbs, torch.bfloat16) - hidden.grad).norm()
    trls = (differentiate(ChunkedLogProbFunction, torch.bfloat16) - hidden.grad).norm()
    assert error < 1.2 * trls < 0.02 * hidden.grad.norm()


@pytest.mark.parametrize("change", ["bias", "temperature", "softcap", "trainable head", "other output"])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_it_does_not_cover_is_left_to_trl(
    rank: str, change: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    tell_once.cache_clear()
    monkeypatch.setattr(FrozenHeadLogProbs, "apply", lambda *_: pytest.fail("ours was taken"))
    weight = torch.randn(50, 8, requires_grad=change == "trainable head")
    bias = torch.zeros(50) if change == "bias" else None
    outputs = ("log_probs", "mean_logits") if change == "other output" else ("log_probs",)
    options = 2.0 if change == "temperature" else 1.0, 32, 5.0 if change == "softcap" else None, 1.0, outputs
    for _ in range(2):
        log_probs = LogProbs.apply(torch.randn(6, 8), weight, bias, torch.arange(6), *options)[0]
        assert log_probs is not None and log_probs.shape == (6,)
    shown = capsys.readouterr()
    assert not shown.out  # which is for --json alone
    assert shown.err.count("TRL's own function") == (rank == "0")
