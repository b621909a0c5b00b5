"""recipes/bloom.yaml unchanged, from a Hub over HTTP to an adapter that is used from that Hub again."""

import difflib
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import Main, run_python
from hub_double import HubDouble
from transformers import AutoTokenizer

from publish.card import format_python
from sft.model import resolve_base


@pytest.fixture
def served(hub: HubDouble, mini_base: Path, small_data: Path) -> dict[str, str]:
    """A miniature BLOOM and a small data set under the names of the real ones; returns their commits."""
    lines = small_data.read_text(encoding="utf-8").splitlines()[1:]
    pairs = [
        (toxic, neutral)
        for toxic, *neutrals in (line.split("\t") for line in lines)
        for neutral in neutrals
        if neutral
    ]
    table = "en_toxic_comment\ten_neutral_comment\n" + "".join(
        f"{toxic}\t{neutral}\n" for toxic, neutral in pairs
    )
    readme = "---\nlicense: openrail++\n---\n# ParaDetox\n"
    return {
        "model": hub.add_repo("model", "bigscience/bloom-3b", mini_base),
        "data": hub.add_repo(
            "dataset", "s-nlp/paradetox", {"train.tsv": table.encode(), "README.md": readme.encode()}
        ),
    }


@pytest.mark.slow
def test_bloom_recipe_from_the_hub_and_back(hub: HubDouble, served: dict[str, str], tmp_path: Path) -> None:
    env = hub.environment(tmp_path / "cache")
    root = tmp_path / "bloom"
    done = run_python(
        "-m", "accelerate.commands.launch", "sft/run.py", "recipes/bloom.yaml", "--output_dir", root, env=env
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((root / "environment.json").read_text())["base"]["revision"] == served["model"]
    manifest = json.loads((root / "data" / "manifest.json").read_text())
    assert (manifest["source"], manifest["revision"]) == ("s-nlp/paradetox", served["data"])
    resolved = yaml.safe_load((root / "recipe.yaml").read_text())
    assert (resolved["model_revision"], resolved["data"]["revision"]) == (served["model"], served["data"])
    config = json.loads((root / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("bigscience/bloom-3b", served["model"])

    # What was downloaded is enough: no network from here on.
    offline = env | {"HF_HUB_OFFLINE": "1"}
    for command in (["eval/run.py", root], ["-m", "publish.run", root]):
        done = run_python(*command, env=offline)
        assert done.returncode == 0, done.stderr
    results = json.loads((root / "eval" / "results.json").read_text())
    metadata = yaml.safe_load((root / "publish" / "README.md").read_text().split("---\n")[1])
    assert metadata["base_model"] == "bigscience/bloom-3b"
    assert metadata["base_model_relation"] == "adapter"
    assert metadata["datasets"] == ["s-nlp/paradetox"]
    assert metadata["license"] == "bigscience-bloom-rail-1.0"
    assert metadata["model-index"][0]["results"][0]["dataset"]["revision"] == served["data"]

    # Another machine: an empty cache, the adapter by its name alone, the same answers as the evaluation's.
    done = run_python("-m", "publish.run", root, "--repo_id", "me/bloom-detox", "--push", env=env)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (root / "eval" / "predictions.jsonl").read_text().splitlines()]
    stdin = "".join(line["toxic"] + "\n" for line in lines)
    done = run_python(
        "-m", "eval.detoxify", "me/bloom-detox", env=hub.environment(tmp_path / "other"), stdin=stdin
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [" ".join(line["prediction"].split()) for line in lines]

    # The code on the card, as it stands.
    code = (
        hub.repos["model", "me/bloom-detox"]
        .files["README.md"]
        .decode()
        .split("```python\n")[1]
        .split("```")[0]
    )
    done = run_python("-c", code, env=hub.environment(tmp_path / "other"))
    assert done.returncode == 0, done.stderr
    (shown,) = [
        group["cases"][0]["output"] for group in results["stress"] if group["group"] == "disguised swearing"
    ]
    # The card's code adds the adapter to each product, the evaluation to the weights: a model of random weights, whose next
    # tokens are nearly as likely as one another, may differ in one of them.
    assert difflib.SequenceMatcher(None, done.stdout.strip(), shown, autojunk=False).ratio() > 0.9

    verify = ("-m", "publish.verify", "me/bloom-detox", "--rerun", "--json")
    done = run_python(*verify, env=hub.environment(tmp_path / "third"))
    assert done.returncode == 0, done.stderr
    checks = json.loads(done.stdout)["checks"]
    assert all(check["holds"] for check in checks)
    assert {"SHA-256 of the weights", "BLEU on the card", "systems.adapter.bleu.value, made again"} <= {
        check["what"] for check in checks
    }
    repo = hub.repos["model", "me/bloom-detox"]
    card = repo.files["README.md"].decode()
    told = metadata["model-index"][0]["results"][0]["metrics"][0]["value"]
    repo.commit_files(
        "refs/heads/main",
        repo.files | {"README.md": card.replace(f"value: {told}", "value: 99.5", 1).encode()},
    )
    done = run_python(*verify, env=hub.environment(tmp_path / "third"))
    assert done.returncode == 3
    assert [check["what"] for check in json.loads(done.stdout)["checks"] if not check["holds"]] == [
        "BLEU on the card"
    ]
    assert "its card's numbers do not hold: BLEU on the card." in done.stderr


@pytest.mark.slow
def test_weights_that_were_not_evaluated_are_refused(
    hub: HubDouble, mini_run: Path, call_main: Main, tmp_path: Path
) -> None:
    shutil.copytree(mini_run, tmp_path / "run")
    call_main("publish.run", tmp_path / "run")
    folder = tmp_path / "run" / "publish"
    weights = bytearray((folder / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(weights)
    hub.add_repo("model", "me/changed", folder)
    (folder / "results.json").unlink()
    hub.add_repo("model", "me/bare", folder)
    for name, message in {
        "me/changed": "its weights are not those that its results.json was made with (the SHA-256 differs).",
        "me/bare": "no results.json in this repository. Expected an adapter that this project published.",
    }.items():
        done = run_python("-m", "eval.detoxify", name, "text", env=hub.environment(tmp_path / "cache"))
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == f"error: {name}: {message}"


BROKEN = {
    "data": (
        ["--data.source", "s-nlp/nope"],
        "--data.source: s-nlp/nope is neither a local data set nor one on the Hub that you can see. If it is private, log in "
        "with `hf auth login`.",
    ),
    "data revision": (
        ["--data.revision", "v9"],
        "--data.revision: s-nlp/paradetox has no revision 'v9'. Expected a branch, a tag or a commit of it.",
    ),
    "model": (
        ["--model_name_or_path", "me/nope"],
        "--model_name_or_path: me/nope is neither a local model nor one on the Hub that you can see. If it is private, log "
        "in with `hf auth login`.",
    ),
    "model revision": (
        ["--model_revision", "v9"],
        "--model_revision: bigscience/bloom-3b has no revision 'v9'. Expected a branch, a tag or a commit of it.",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.usefixtures("served")
def test_what_the_hub_does_not_have(case: str, hub: HubDouble, tmp_path: Path) -> None:
    overrides, message = BROKEN[case]
    done = run_python(
        "-m", "sft.check", "recipes/bloom.yaml", *overrides, env=hub.environment(tmp_path / "cache")
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"error: {message}"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_no_network_and_no_cache(tmp_path: Path) -> None:
    env = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = run_python("-m", "sft.check", "recipes/bloom.yaml", env=env)
    assert done.returncode == 2
    recipe = Path("recipes/bloom.yaml").read_text(encoding="utf-8").splitlines()
    source, model = (
        next(number for number, line in enumerate(recipe, 1) if line.startswith(key))
        for key in ("  source:", "model_name_or_path:")
    )
    assert done.stderr.splitlines() == [
        "errors:",
        f"recipes/bloom.yaml:{source}: data.source: the Hub could not be reached, and s-nlp/paradetox is not in the local cache. "
        "Go online once, or name a local data set.",
        f"recipes/bloom.yaml:{model}: model_name_or_path: the Hub could not be reached, and bigscience/bloom-3b is not in the "
        "local cache. Go online once, or name a local model.",
    ]


@pytest.fixture(scope="module")
def ended_run(
    mini_run: Path,
    mini_arguments: list[str],
    mini_base: Path,
    call_main: Main,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run whose answers end at a word of the vocabulary, the one that answers of another run have most."""
    tokenizer = AutoTokenizer.from_pretrained(mini_base)
    lines = (json.loads(line) for line in (mini_run / "eval" / "predictions.jsonl").read_text().splitlines())
    words = Counter(
        token for line in lines for token in tokenizer.tokenize(line["prediction"])[1:] if token.isalpha()
    )
    root = tmp_path_factory.mktemp("ended") / "run"
    end = words.most_common(1)[0][0]
    call_main(
        "sft.run", *mini_arguments, "--output_dir", root, "--eos_token", end, "--eval.baselines", "copy"
    )
    call_main("eval.run", root)
    return root


@pytest.mark.slow
def test_code_of_a_card_and_of_its_merged_model(
    hub: HubDouble, ended_run: Path, mini_base: Path, tmp_path: Path
) -> None:
    """Both blocks of code as they stand, in fresh processes that know nothing of the project."""
    shutil.copytree(ended_run, tmp_path / "run")
    push = ("-m", "publish.run", tmp_path / "run", "--repo_id", "me/tiny", "--merged", "--push")
    done = run_python(*push, env=hub.environment(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    files = hub.repos["model", "me/tiny"].files
    results = json.loads(files["results.json"])
    end = results["tokens"]["eos_token"]
    (shown,) = [
        group["cases"][0]["output"] for group in results["stress"] if group["group"] == "disguised swearing"
    ]
    adapter, merged = (part.split("```")[0] for part in files["README.md"].decode().split("```python\n")[1:])
    assert f"tokenizer.eos_token = {format_python(end)}\n" in adapter
    assert '"PATH/TO/THE/BASE"' in adapter
    for code in (adapter, merged):
        assert len(code.strip().splitlines()) <= 25
        alone = code.replace('"PATH/TO/THE/BASE"', repr(str(mini_base)))
        done = subprocess.run(
            [sys.executable, "-c", alone], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={"PATH": "/usr/bin", "OMP_NUM_THREADS": "1"} | hub.environment(tmp_path / "other"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer = done.stdout.strip()
        assert end not in AutoTokenizer.from_pretrained(mini_base).tokenize(answer)
        assert difflib.SequenceMatcher(None, answer, shown, autojunk=False).ratio() > 0.9


def test_a_folder_of_the_cache_is_the_hub_base_that_it_holds(mini_base: Path, tmp_path: Path) -> None:
    import shutil

    commit = "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "models--big--some-model" / "snapshots" / commit
    shutil.copytree(mini_base, folder)
    for name in (str(folder), f"{folder}/"):
        base = resolve_base(name)
        assert (base.name, base.revision, base.path) == ("big/some-model", commit, str(folder))
    for other in (
        tmp_path / "models--big--some-model" / "snapshots" / "main",
        tmp_path / "snapshots" / commit,
    ):
        shutil.copytree(mini_base, other)
        assert resolve_base(str(other)).revision is None
