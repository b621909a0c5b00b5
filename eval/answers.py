"""What language models write in one evaluation: rewrites of its rows and of stress cases."""

from pathlib import Path

from eval.generate import rewrite_texts
from eval.lengths import check_lengths
from eval.rows import EvalRows, UnrewrittenRows, choose_shots
from eval.scoring import Answers, Circumstances
from eval.stress import list_texts


def generate_answers(
    circumstances: Circumstances, rows: EvalRows, unrewritten: UnrewrittenRows | None, journal: Path
) -> Answers:
    """Return the outputs of each generated system, on every process; for `journal` see `rewrite_texts`."""
    adapter, settings = circumstances.adapter, circumstances.settings
    texts = [example.toxic for example in rows.examples]
    stress = list_texts() if settings.stress else []
    unrewritten_texts = [line["toxic"] for line in unrewritten.lines] if unrewritten else []
    shots = choose_shots(circumstances.splits["train"]) if "few_shot" in settings.baselines else []
    shots = check_lengths(adapter, [*texts, *stress, *unrewritten_texts], shots)
    systems: dict[str, list[str]] = {}
    systems["adapter"], seconds = rewrite_texts(adapter, texts, journal)
    if "base" in settings.baselines:
        systems["base"], _ = rewrite_texts(adapter, texts, journal, tuned=False)
    if "few_shot" in settings.baselines:
        systems["few_shot"], _ = rewrite_texts(adapter, texts, journal, tuned=False, shots=shots)
    stressed, _ = rewrite_texts(adapter, stress, journal) if stress else ([], 0)
    attempts: list[str] = []
    if unrewritten is not None:
        attempts, _ = rewrite_texts(adapter, unrewritten_texts, journal)
    return Answers(systems, seconds, stressed, attempts)
