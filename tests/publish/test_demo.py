"""The demo's page in a browser, and as a Space on the Hub's double."""

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import run_python
from hub_double import Fault, HubDouble

from eval.report import escape_markdown
from eval.standalone import choose_quantization
from publish.app import (
    LONGEST,
    MOST_WAITING,
    build_app,
    describe_settings,
    escape,
    mark_differences,
    tabulate_scores,
)
from publish.card import BEGIN, split_card
from publish.demo import build_space
from sft.storage import PROJECT, read_json

if TYPE_CHECKING:
    from selenium import webdriver

SECONDS = 90  # for the page to come up, on a busy machine


def test_differences_hold_all_words_of_both() -> None:
    text, rewrite = "you are a stupid liar and a fool", "you are a liar and wrong"
    marked = mark_differences(text, rewrite)
    assert marked == [
        ("you are a", None),
        ("stupid", "removed"),
        ("liar and", None),
        ("a fool", "removed"),
        ("wrong", "added"),
    ]
    assert " ".join(words for words, kind in marked if kind != "added") == text
    assert " ".join(words for words, kind in marked if kind != "removed") == rewrite
    assert mark_differences("same", "same") == [("same", None)]
    assert mark_differences("gone", "") == [("gone", "removed")]


def test_scores_and_settings_are_those_of_the_results(mini_run: Path) -> None:
    results = read_json(mini_run / "eval" / "results.json")
    table = tabulate_scores(results)
    for system in ("adapter", "copy", "delete", "human"):
        assert f"{results['systems'][system]['chrf']['value']:.1f} [" in table
    people, adapter = table.splitlines()[-2:]
    ceiling = results["ceiling"]
    assert people.startswith(f"| people, on {ceiling['rows']} sentences | ")
    assert adapter.startswith(f"| this adapter, on these {ceiling['rows']} | ")
    for line, system in ((people, "human"), (adapter, "adapter")):
        assert f"{ceiling['systems'][system]['chrf']['value']:.1f} [" in line
    assert results["adapter"]["sha256"] in describe_settings(results)


@pytest.mark.parametrize(("bits", "said"), [(4, "4 bit"), (8, "8 bit"), (None, "not quantised")])
def test_quantization_is_that_of_the_training(bits: int | None, said: str, mini_run: Path) -> None:
    results = read_json(mini_run / "eval" / "results.json")
    results["quantization"] |= {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8}
    assert f", {said}\n" in describe_settings(results)
    config = choose_quantization(results["quantization"])
    assert (config is None) == (bits is None)
    if config:
        assert (config.load_in_4bit, config.load_in_8bit) == (bits == 4, bits == 8)


HOSTILE = [
    "x`\n# heading",
    "` [a](http://e.org) ![b](http://e.org/i.png)",
    "<img src=x onerror=alert(1)> &lt;b&gt;",
    "www.e.org me@e.org $x^2$ ~~s~~ | _a_ **b** \\",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_settings_render_as_text(text: str, mini_run: Path) -> None:
    from markdown_it import MarkdownIt

    results = read_json(mini_run / "eval" / "results.json")
    results["base"] |= {"name": text, "revision": text}
    results["adapter"]["sha256"] = results["prompt"] = text
    results["generation"] |= {"num_beams": text, "max_new_tokens": text}
    page = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .render(describe_settings(results))
    )
    assert set(re.findall(r"<(/?\w+)", page)) == {"ul", "/ul", "li", "/li"}
    assert "://" not in describe_settings(results)
    assert "www." not in describe_settings(results)
    assert escape(text) == escape_markdown(text)


def test_metadata_of_a_space_holds_no_keys_of_a_stranger(mini_run: Path) -> None:
    results = read_json(mini_run / "eval" / "results.json")
    results["base"] |= {"revision": "b" * 40}
    for license in ("mit\nsdk: docker\napp_port: 1", "mit\n---\n# x", ["mit"], {"sdk": "docker"}):
        card = build_space("me/adapter", results, license, "demo")["README.md"].decode()
        metadata, text = split_card(card)
        assert metadata["sdk"] == "gradio"
        assert "app_port" not in metadata
        assert metadata.get("license", license) == license
        assert text.lstrip().startswith(BEGIN)


@pytest.mark.slow
def test_page_has_a_bounded_queue_and_takes_no_files(address: str) -> None:
    assert build_app(str, None, "x")._queue.max_size == MOST_WAITING
    body = '--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    request = urllib.request.Request(
        f"{address}/gradio_api/upload", body.encode(), {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=SECONDS)
    assert caught.value.code == 413
    # What the page itself does: a request that waits its turn.
    call = urllib.request.Request(
        f"{address}/gradio_api/call/rewrite", b'{"data": ["  "]}', {"Content-Type": "application/json"}
    )
    event = json.loads(urllib.request.urlopen(call, timeout=SECONDS).read())["event_id"]
    answer = (
        urllib.request.urlopen(f"{address}/gradio_api/call/rewrite/{event}", timeout=SECONDS).read().decode()
    )
    assert "event: complete" in answer
    assert "Type a sentence first" in answer


@pytest.fixture(scope="module")
def address(mini_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a run, served by the command itself."""
    log = tmp_path_factory.mktemp("demo") / "log"
    port = 17860
    command = [sys.executable, "-m", "publish.demo", str(mini_run), "--port", str(port)]
    with (
        log.open("w") as stream,
        subprocess.Popen(command, cwd=PROJECT, stdout=stream, stderr=stream) as process,
    ):
        try:
            for _ in range(SECONDS * 2):
                assert process.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5)
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                raise AssertionError(log.read_text())
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def open_page(address: str) -> Iterator["webdriver.Chrome"]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "disable-sync",
    ):
        options.add_argument(f"--{flag}")
    drivers = []

    def start() -> "webdriver.Chrome":
        driver = webdriver.Chrome(
            options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
        )
        driver.set_window_size(1280, 1000)
        drivers.append(driver)
        driver.get(address)
        wait_for(lambda: driver.find_elements("css selector", "#text textarea"))
        return driver

    yield start
    for driver in drivers:
        driver.quit()


def wait_for(condition: object) -> object:
    assert callable(condition)
    for _ in range(SECONDS * 5):
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError("nothing came")


def enter(driver: "webdriver.Chrome", text: str) -> None:
    box = driver.find_element("css selector", "#text textarea")
    box.clear()
    driver.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        box,
        text,
    )
    driver.find_element("css selector", "button#go").click()


def read_answer(driver: "webdriver.Chrome") -> str:
    return str(driver.execute_script("return document.querySelector('#rewritten textarea').value"))


def read_note(driver: "webdriver.Chrome") -> str:
    return str(driver.execute_script("return (document.querySelector('#note') || {innerText: ''}).innerText"))


@pytest.mark.slow
def test_page_in_a_browser(open_page: object, mini_run: Path) -> None:
    """Typing and clicking, an empty and a very long input, and two users at once, each with their own answer."""
    assert callable(open_page)
    first, second = open_page(), open_page()
    texts = ["what a damn nuisance this is", "shut up and go away"]
    done = run_python("-m", "eval.detoxify", mini_run, *texts)
    expected = [line.strip() for line in done.stdout.splitlines()]
    for driver, text in zip((first, second), texts, strict=True):
        enter(driver, text)
    for driver, answer in zip((first, second), expected, strict=True):
        assert " ".join(str(wait_for(lambda driver=driver: read_answer(driver))).split()) == answer
        assert driver.find_elements("css selector", "#changed")
    enter(first, "   ")
    wait_for(lambda: "Type a sentence first" in read_note(first))
    assert read_answer(first) == ""
    enter(first, "x " * LONGEST)
    wait_for(lambda: f"expected at most {LONGEST}" in read_note(first))
    assert " ".join(read_answer(second).split()) == expected[1], "the other user's page is as it was"
    example = first.find_elements("xpath", "//*[contains(text(), 'Thanks for your help with the garden.')]")[
        -1
    ]
    example.click()
    wait_for(
        lambda: "garden" in first.execute_script("return document.querySelector('#text textarea').value")
    )
    assert not [
        entry
        for entry in first.get_log("browser")
        if entry["level"] == "SEVERE" and "127.0.0.1" not in entry["message"]
    ]


@pytest.mark.slow
def test_port_in_use_is_one_error(address: str, mini_run: Path) -> None:
    port = address.rpartition(":")[2]
    done = run_python("-m", "publish.demo", mini_run, "--port", port)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: --port: {port} is in use. Name another."


@pytest.fixture
def published(hub: HubDouble, mini_run: Path, mini_base: Path, tmp_path: Path) -> dict[str, str]:
    """A run's files as an adapter of a base on the Hub; returns the environment that leads there."""
    commit = hub.add_repo("model", "bigscience/bloom-mini", mini_base)
    env = hub.environment(tmp_path / "cache")
    results = read_json(mini_run / "eval" / "results.json")
    results["base"] |= {"name": "bigscience/bloom-mini", "revision": commit, "weights": {}}
    config = read_json(mini_run / "adapter" / "adapter_config.json")
    config |= {"base_model_name_or_path": "bigscience/bloom-mini", "revision": commit}
    results["adapter"]["config_sha256"] = hashlib.sha256(json.dumps(config).encode()).hexdigest()
    files = {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "adapter_model.safetensors": (mini_run / "adapter" / "adapter_model.safetensors").read_bytes(),
        "adapter_config.json": json.dumps(config).encode(),
        "results.json": json.dumps(results).encode(),
    }
    hub.add_repo("model", "me/adapter", files)
    return env


@pytest.mark.slow
def test_space_is_committed_once_and_its_app_rewrites(
    hub: HubDouble, published: dict[str, str], tmp_path: Path
) -> None:
    command = ("-m", "publish.demo", "me/adapter", "--space", "me/demo")
    done = run_python(*command, env=published)
    assert done.returncode == 0, done.stderr
    assert "Nothing has left this machine." in done.stdout
    assert ("space", "me/demo") not in hub.repos
    for said in ("committed, and verified", "all of it was there already"):
        done = run_python(*command, "--push", env=published)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    space = hub.repos["space", "me/demo"]
    assert (space.sdk, space.private) == ("gradio", True)
    assert set(space.files) >= {"README.md", "app.py", "standalone.py", "requirements.txt"}
    assert b"license: apache-2.0\n---" in space.files["README.md"]
    assert all("==" in line for line in space.files["requirements.txt"].decode().splitlines())
    # The app as it stands in the Space, in a process that knows nothing of this project.
    app = tmp_path / "space" / "app.py"
    app.parent.mkdir()
    for name in ("app.py", "standalone.py"):
        (app.parent / name).write_bytes(space.files[name])
    code = "import runpy; m = runpy.run_path('app.py'); rewrite, _ = m['load_from_hub'](m['ADAPTER']); print(rewrite('shut up now'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=app.parent, env=published | {"PATH": "/usr/bin", "OMP_NUM_THREADS": "2"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = run_python("-m", "eval.detoxify", "me/adapter", "shut up now", env=published)
    # The product merges the adapter, the Space does not: a random model's greedy answers part at the first token
    # that is rounded the other way.
    assert done.stdout[:10] == expected.stdout[:10]


@pytest.mark.slow
def test_plan_and_push_of_a_space_as_json(hub: HubDouble, published: dict[str, str]) -> None:
    command = ("-m", "publish.demo", "me/adapter", "--space", "me/demo", "--json")
    plan, pushed = (
        json.loads(run_python(*command, *more, env=published).stdout) for more in ((), ("--push",))
    )
    assert (plan["pushed"], plan["head"], plan["secret"]) == (False, None, None)
    assert {file["name"] for file in plan["files"]} == {
        "README.md",
        "app.py",
        "standalone.py",
        "requirements.txt",
    }
    assert (pushed["pushed"], pushed["committed"]) == (True, True)
    assert pushed["commit"] == hub.repos["space", "me/demo"].commit


@pytest.mark.slow
def test_a_private_adapter_needs_a_secret_and_no_public_space(
    hub: HubDouble, published: dict[str, str]
) -> None:
    hub.repos["model", "me/adapter"].private = True
    command = ("-m", "publish.demo", "me/adapter", "--space", "me/demo", "--push")
    done = run_python(*command, "--public", env=published)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("error: me/adapter is private, and me/demo is public")
    assert ("space", "me/demo") not in hub.repos
    done = run_python(*command, env=published)
    assert done.returncode == 0, done.stderr
    assert "me/adapter is private: set the Space's secret HF_TOKEN, a token that may read it" in done.stdout
    assert f"{hub.url}/spaces/me/demo/settings" in done.stdout.replace("\n", "")
    hub.repos["space", "me/demo"].private = False
    assert run_python(*command, env=published).returncode == 3


@pytest.mark.slow
def test_a_licence_that_is_none_is_not_put_into_a_space(hub: HubDouble, published: dict[str, str]) -> None:
    """Neither a path of somebody's machine, nor keys of the Space's own settings."""
    adapter = hub.repos["model", "me/adapter"]
    for number, license in enumerate(("/home/jane/licence", '"mit\\nsdk: docker\\napp_port: 1"')):
        card = f"---\nlicense: {license}\n---\n".encode()
        adapter.commit_files("refs/heads/main", adapter.files | {"README.md": card})
        name = f"me/demo{number}"
        done = run_python("-m", "publish.demo", "me/adapter", "--space", name, "--push", env=published)
        assert done.returncode == 0, done.stderr
        space = hub.repos["space", name].files["README.md"].decode()
        metadata = split_card(space)[0]
        assert (metadata["sdk"], metadata.get("license"), metadata.get("app_port")) == ("gradio", None, None)
        assert "jane" not in space


@pytest.mark.slow
def test_a_space_while_the_hub_fails(hub: HubDouble, published: dict[str, str]) -> None:
    hub.faults.append(Fault("GET /api/models/", "cut", times=999))
    done = run_python("-m", "publish.demo", "me/adapter", "--space", "me/demo", env=published)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith("error: me/adapter: the Hub failed to deliver it: ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_address_as_json(mini_run: Path) -> None:
    command = [sys.executable, "-m", "publish.demo", str(mini_run), "--port", "17861", "--json"]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout
            found = json.loads(process.stdout.readline())
            assert found["adapter"] == str(mini_run)
            urllib.request.urlopen(f"{found['address']}config", timeout=SECONDS)
        finally:
            process.terminate()
        assert process.stdout.read() == "", "nothing but the object"


@pytest.mark.slow
def test_a_hub_that_asks_for_payment(hub: HubDouble, published: dict[str, str]) -> None:
    hub.paid_spaces = True
    done = run_python("-m", "publish.demo", "me/adapter", "--space", "me/demo", "--push", env=published)
    assert done.returncode == 4
    assert "the Hub asks for payment for this" in done.stderr
    assert ("space", "me/demo") not in hub.repos


@pytest.mark.slow
def test_what_a_space_can_not_load_is_refused(
    hub: HubDouble, mini_run: Path, published: dict[str, str]
) -> None:
    done = run_python("-m", "publish.demo", mini_run, "--space", "me/demo", env=published)
    assert done.returncode == 2
    assert "Push the run first" in done.stderr
    assert not [path for method, path in hub.requests if method == "POST"]


@pytest.mark.slow
def test_without_gradio_the_command_says_how_to_get_it(mini_run: Path) -> None:
    assert importlib.util.find_spec("gradio")
    code = "import runpy, sys; sys.modules['gradio'] = None; runpy.run_module('publish.demo', run_name='__main__')"
    done = run_python("-c", code, mini_run)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: gradio is not installed. Install the demo's libraries: pip install -e '.[demo]'\n"
    )
