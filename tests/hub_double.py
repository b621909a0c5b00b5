"""A local double of the Hugging Face Hub over HTTP: what downloads of models and data sets need, as the real one answers.

with HubDouble() as hub:
    commit = hub.add_repo("dataset", "s-nlp/paradetox", {"train.tsv": b"..."})
    subprocess.run(..., env=os.environ | hub.environment(cache_dir))
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass
class Repo:
    files: dict[str, bytes]
    private: bool = False
    tags: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        """A hash of the content: 40 hex digits, like a git commit's."""
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()


class HubDouble:
    """Serves repositories from memory, and keeps a log of the requests as (method, path)."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (HubHandler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def add_repo(self, kind: str, repo_id: str, files: dict[str, bytes] | Path) -> str:
        """Add a repository from a mapping of names to contents, or from a folder; return its commit."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        self.repos[kind, repo_id] = Repo(files)
        return self.repos[kind, repo_id].commit

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the environment variables that send huggingface_hub here, with an empty cache of its own."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def __enter__(self) -> "HubDouble":
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class HubHandler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.answer(self.rfile.read(length))

    def answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if match := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(.*))?", path):
            self.answer_api(KINDS[match[1]], match[2], match[3] or "", body)
        elif match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.answer_file(KINDS[match[1] or "models"], match[2], match[3], match[4])
        else:
            self.send(404, b'{"error": "not found"}')

    def find_repo(self, kind: str, repo_id: str, revision: str) -> Repo | None:
        """Return the repository at a revision, or answer with the Hub's typed error."""
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None:
            self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return None
        if revision not in ("main", repo.commit, *repo.tags):
            self.send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            return None
        return repo

    def answer_api(self, kind: str, repo_id: str, rest: str, body: bytes) -> None:
        parts = rest.split("/")
        action, revision = parts[0], parts[1] if len(parts) > 1 else "main"
        repo = self.find_repo(kind, repo_id, revision)
        if repo is None:
            return
        if action in ("", "revision"):
            info = {
                "id": repo_id,
                "sha": repo.commit,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": name} for name in sorted(repo.files)],
            }
            self.send_json(info)
        elif action == "tree":
            self.send_json([self.describe_file(name, content) for name, content in sorted(repo.files.items())])
        elif action == "paths-info":
            wanted = json.loads(body).get("paths", []) if body.startswith(b"{") else []
            self.send_json([self.describe_file(name, repo.files[name]) for name in wanted if name in repo.files])
        else:
            self.send(404, b'{"error": "not found"}')

    @staticmethod
    def describe_file(name: str, content: bytes) -> dict[str, object]:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def answer_file(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        repo = self.find_repo(kind, repo_id, revision)
        if repo is None:
            return
        commit = {"X-Repo-Commit": repo.commit}
        if name not in repo.files:
            self.send(404, b'{"error": "Entry not found"}', commit | {"X-Error-Code": "EntryNotFound"})
            return
        content = repo.files[name]
        etag = f'"{hashlib.sha1(b"blob %d" % len(content) + bytes(1) + content).hexdigest()}"'
        headers = commit | {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        self.send(200, content, headers)

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
