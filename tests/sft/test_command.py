"""What the system refuses a command, told in one message."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sft.command import InputError, Shortage, explain_shortage


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y.json"), "/x/y.json: the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is used up"),
        (OSError(errno.EMFILE, "Too many open files"), "too many files are open"),
        (OSError(errno.EIO, "Input/output error"), "the disk failed"),
        (MemoryError(), "the memory is used up"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "the memory is used up",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0"),
            "a file could not be",
        ),
        (Exception("No space left on device (os error 28)"), "the disk is full"),
    ],
)
def test_a_shortage_is_one_message(error: Exception, found: str, tmp_path: Path) -> None:
    with pytest.raises(Shortage, match="Go on so") as caught, explain_shortage(tmp_path, "Go on so."):
        raise error
    assert found in str(caught.value)
    assert "MiB free there" in str(caught.value)
    assert caught.value.status == 1


@pytest.mark.parametrize(
    "error", [InputError("x"), RuntimeError("size mismatch"), FileNotFoundError(2, "x", "y")]
)
def test_other_errors_stay_what_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, explain_shortage(tmp_path):
        raise error
    assert caught.value is error


WRITERS = {
    "python": "open(path, 'wb').write(bytes(10**6))",
    "safetensors": "import torch, safetensors.torch as s; s.save_file({'a': torch.zeros(10**6)}, path)",
    "torch": "import torch; torch.save({'a': torch.zeros(10**6)}, path)",
    "tokenizers": "from tokenizers import Tokenizer, models; "
    "Tokenizer(models.WordLevel({str(n): n for n in range(10**5)}, '0')).save(path)",
}


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_libraries_that_can_not_write(writer: str, tmp_path: Path) -> None:
    """Each library's own error, for real: a file may not grow beyond 100 kB."""
    code = f"""
import signal
from pathlib import Path
from sft.command import explain_shortage, run_command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def main():
    path = {str(tmp_path / "file")!r}
    with explain_shortage(Path(path).parent):
        {WRITERS[writer]}
run_command(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: {tmp_path}")
