"""What must not leave this machine is found, and ordinary texts are not."""

import getpass
import json
from pathlib import Path

import pytest

from publish.scan import find_private
from sft.storage import PROJECT


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine of jane's, whoever runs the tests."""
    monkeypatch.setattr(getpass, "getuser", lambda: "jane")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jane"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("key hf_" + "a1B2" * 8, "a Hugging Face token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("see /home/jane/data.tsv", "a home directory"),
        (r"see C:\\Users\\jane\\data.tsv", "a home directory"),
        ("https://me:secret@host/x", "a password in a URL"),
        ("see ~jane/x", "the user's name"),
        ("see ../users/jane", "the user's name"),
        ("see /mnt/corp/x", "an absolute path"),
        ("file:///mnt/corp/x", "an absolute path"),
        ("`/opt/x&#95;y`", "an absolute path"),
        (r"see D:\work\x", "a path on a drive"),
        ("see D:&#92;work&#92;x", "a path on a drive"),
    ],
)
def test_what_is_private_is_found_and_not_repeated(text: str, what: str) -> None:
    found = find_private({"README.md": f"fine\n{text}".encode()})
    assert f"README.md:2: {what}" in found
    assert not any("jane" in line or "a1B2" in line or "corp" in line for line in found)


def test_working_directory_is_found() -> None:
    assert "README.md:1: the working directory" in find_private({"README.md": f"see {Path.cwd()}/x".encode()})


def test_paths_in_json_and_yaml() -> None:
    assert find_private({"a.json": json.dumps({"x": r"D:\work\x", "y": 1}, indent=2).encode()}) == [
        "a.json:2: a path on a drive"
    ]
    assert find_private({"a.json": json.dumps({"x": 1, "y": "/corp/x"}, indent=2).encode()}) == [
        "a.json:3: a path as a value"
    ]
    assert find_private({"a.yaml": b"x:\n  y: /corp/x\n"}) == ["a.yaml:2: a path as a value"]
    assert find_private({"a.json": json.dumps({"x": "Choose A:\nfoo\nbar"}, indent=2).encode()}) == []


@pytest.mark.parametrize("text", ["hf_" + "a1B2" * 8, "/home/jane/plots"])
def test_plots_are_scanned_too(text: str) -> None:
    (found, *_) = find_private(
        {"plots/x.png": b"\x89PNG\r\n\x1a\n\xff\x00tEXtComment\x00" + text.encode() + b"\x00\xfe"}
    )
    assert found.startswith("plots/x.png: a ")


ORDINARY = [
    "a / b, hf_home, sk-ip, /homely/",
    "he/she and/or 24/7, she /he/it, /r/news and /u/somebody, w/o it",
    "https://huggingface.co/jane/x at bigscience/bloom-3b, https://example.com/home/page and https://x.org/data/y",
    "jane will see jane/x, ~jane and Jane's /s",
    "so sad D: and :/ or D:/ but A:\\",
]


@pytest.mark.parametrize("name", ["README.md", "results.json", "recipe.yaml"])
@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_pass(text: str, name: str) -> None:
    assert find_private({name: text.encode()}) == []


def test_files_of_the_project_pass() -> None:
    names = [
        "README.md",
        "recipes/tiny.yaml",
        "recipes/bloom.yaml",
        "tests/golden/card.md",
        "publish/app.py",
        "eval/standalone.py",
    ]
    assert find_private({name: (PROJECT / name).read_bytes() for name in names}) == []


def test_name_of_the_user_who_owns_the_repository_passes() -> None:
    text = {"README.md": b"https://x.org/users/jane"}
    assert find_private(text) == ["README.md:1: the user's name"]
    assert find_private(text, "jane") == []


@pytest.mark.parametrize("folder", ["/bloom", "/app", "/srv/bloom"])
def test_folders_are_found_as_whole_paths_alone(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path(folder))
    names = b"bigscience/bloom-3b, bloom/x, the web /app, an /apple, x/srv/bloom, https://x.org/bloom/x"
    assert find_private({"README.md": names}) == []
    assert "README.md:1: the working directory" in find_private({"README.md": f"in {folder}/runs".encode()})


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_user_without_a_name_is_no_error(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise error("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", fail)
    assert find_private({"README.md": b"jane"}) == []


def test_pickles_are_found() -> None:
    found = ["x.bin: a pickle, which can run code when it is loaded"]
    assert find_private({"x.bin": b""}) == find_private({"x.bin": b"\x80\x02x"}) == found
