"""A local double of the Hugging Face Hub over HTTP: it answers as the real one does for every call that this project makes.

with HubDouble() as hub:
    commit = hub.add_repo("dataset", "s-nlp/paradetox", {"train.tsv": b"..."})
    subprocess.run(..., env=os.environ | hub.environment(cache_dir))

What is sent to it is checked: the token, sizes and hashes of uploads, the lines of a commit. Faults are injected by plan:
`hub.faults.append(Fault("POST .*/commit/", 503))`; see `Fault`.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
LFS_SUFFIXES = (".safetensors", ".png", ".bin", ".parquet")
TOKEN = "hf_" + "TestTokenOfTheHubDouble" + "0123456789"
USER = "me"


@dataclass
class Fault:
    """What goes wrong with the requests "METHOD /path" that `request` matches: after `skip` of them, `times` in a row.

    `how` is a status code; "cut" (the connection closes); "hang" (no answer for `seconds`); "write" (somebody else's commit
    lands first, then the request is served); "garble" (a stored byte changes). With `late`, the request first takes effect
    and then fails: the answer is lost.
    """

    request: str
    how: int | str
    late: bool = False
    times: int = 1
    skip: int = 0
    seconds: float = 2.0


@dataclass
class Repo:
    """One repository: `history` maps each commit to its files, `refs` each branch, tag and pull request to its commit."""

    history: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)  # of commits, and of pull requests by their ref
    messages: dict[str, str] = field(default_factory=dict)  # of commits
    private: bool = False
    sdk: str | None = None

    def commit_files(self, ref: str, files: dict[str, bytes], title: str = "") -> str:
        """Commit a whole tree to a ref; return the commit's 40 hex digits."""
        digest = hashlib.sha1(f"{self.refs.get(ref)} {title} {len(self.history)}".encode())
        for name, content in sorted(files.items()):
            digest.update(name.encode() + b"\0" + content)
        oid = digest.hexdigest()
        self.history[oid] = files
        self.refs[ref] = oid
        self.titles[oid] = title
        return oid

    @property
    def commit(self) -> str:
        return self.refs["refs/heads/main"]

    @property
    def files(self) -> dict[str, bytes]:
        return self.history[self.commit]

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch, tag, full ref or commit."""
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next(
            (self.refs[name] for name in names if name in self.refs),
            revision if revision in self.history else None,
        )

    def pull_requests(self) -> list[str]:
        return [ref for ref in self.refs if ref.startswith("refs/pr/")]


class HubDouble:
    """Serves repositories from memory, and keeps a log of the requests as (method, path)."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size: int | None = None  # of multipart uploads; None: basic ones alone
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.paid_spaces = False
        self.lock = threading.RLock()
        handler = type("Handler", (HubHandler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def add_repo(self, kind: str, repo_id: str, files: dict[str, bytes] | Path) -> str:
        """Add a repository from a mapping of names to contents, or from a folder; return its commit."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        repo = self.repos[kind, repo_id] = Repo()
        return repo.commit_files("refs/heads/main", files, "initial commit")

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the environment variables that send huggingface_hub here, with an empty cache and a token of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }

    def __enter__(self) -> "HubDouble":
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Answer(Exception):
    """Ends the handling of a request with an error, as the Hub words it."""

    def __init__(self, status: int, error: str, code: str | None = None, **fields: Any) -> None:
        self.status, self.body = status, {"error": error} | fields
        self.headers = {"X-Error-Message": error} | ({"X-Error-Code": code} if code else {})


class HubHandler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client has gone, as a killed one does
            self.close_connection = True

    # ---------------------------------------------------------------------------------------- faults and dispatch

    def do_GET(self) -> None:  # and all other methods, see below
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(split.path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            fault = self.next_fault(f"{self.command} {path}")
            if fault and fault.how == "write":
                for repo in self.hub.repos.values():
                    repo.commit_files(
                        "refs/heads/main",
                        repo.files | {"other.txt": b"from another writer"},
                        "Another writer",
                    )
                fault = None
        if fault and not fault.late:
            self.fail(fault)
            return
        try:
            with self.hub.lock:
                status, content, headers = self.answer(split.path)
        except Answer as answer:
            status, content, headers = answer.status, json.dumps(answer.body).encode(), answer.headers
        if fault and fault.how == "garble":
            with self.hub.lock:
                for oid in self.hub.blobs:
                    self.hub.blobs[oid] = b"?" + self.hub.blobs[oid][1:]
        elif fault:
            self.fail(fault)
            return
        self.send(status, content, headers)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def next_fault(self, request: str) -> Fault | None:
        for fault in self.hub.faults:
            if re.search(fault.request, request):
                if fault.skip:
                    fault.skip -= 1
                elif fault.times:
                    fault.times -= 1
                    return fault
        return None

    def fail(self, fault: Fault) -> None:
        if isinstance(fault.how, int):
            headers = {"Retry-After": "0"} if fault.how == 429 else {}
            self.send(fault.how, json.dumps({"error": f"planned fault {fault.how}"}).encode(), headers)
            return
        if fault.how == "hang":
            threading.Event().wait(fault.seconds)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer(self, raw_path: str) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers.

        Raises:
            Answer: the request is refused.
        """
        path = unquote(raw_path)
        match = re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(.*))?", raw_path)
        if match:
            kind, repo_id = KINDS[match[1]], match[2]
            action, *rest = [unquote(part) for part in (match[3] or "").split("/")]
            handler: Callable[..., Any] | None = getattr(
                self, f"{self.command.lower()}_{action.replace('-', '_') or 'info'}", None
            )
            if handler is None:
                raise Answer(404, f"{self.command} {path}: not a call of this double")
            result = handler(kind, repo_id, *(rest if action == "tree" else ["/".join(rest) or "main"]))
        elif match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", raw_path):
            return self.resolve(KINDS[match[1] or "models"], match[2], unquote(match[3]), unquote(match[4]))
        elif match := re.fullmatch(
            r"/(?:(?:datasets|spaces)/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", path
        ):
            result = self.start_uploads(self.read_json())
        elif match := re.fullmatch(r"/lfs/([0-9a-f]{64})(?:/(\d+))?", path):
            return self.put_blob(match[1], int(match[2]) if match[2] else None)
        elif path in ("/lfs-complete", "/lfs-verify"):
            result = self.finish_upload(self.read_json())
        elif path == "/api/whoami-v2":
            self.need_token()
            result = {
                "type": "user",
                "id": "0",
                "name": USER,
                "fullname": USER,
                "orgs": [],
                "auth": {"type": "access_token"},
            }
        elif path == "/api/repos/create":
            result = self.create_repo(self.read_json())
        elif path == "/api/validate-yaml":
            result = self.validate_yaml(self.read_json())
        else:
            raise Answer(404, f"{self.command} {path}: not a call of this double")
        return 200, json.dumps(result).encode(), {"Content-Type": "application/json"}

    # ---------------------------------------------------------------------------------------------------- helpers

    def read_json(self) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(self.body)
        except ValueError:
            raise Answer(400, "body is no JSON") from None
        return value

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def need_token(self) -> None:
        if not self.has_token():
            raise Answer(401, "Invalid username or password.")

    def find_repo(self, kind: str, repo_id: str) -> Repo:
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not self.has_token()):
            raise Answer(404 if self.has_token() else 401, "Repository not found", "RepoNotFound")
        return repo

    def find_commit(self, repo: Repo, revision: str) -> str:
        oid = repo.find(revision)
        if oid is None:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    @staticmethod
    def describe_file(name: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        described: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": oid}
        if name.endswith(LFS_SUFFIXES):
            described["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 130,
            }
        return described

    # ---------------------------------------------------------------------------------------------------- reading

    def get_info(self, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
        repo = self.find_repo(kind, repo_id)
        oid = self.find_commit(repo, revision)
        files = repo.history[oid]
        return {
            "id": repo_id,
            "sha": oid,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": name} for name in sorted(files)],
        }

    get_revision = get_info

    def get_tree(self, kind: str, repo_id: str, revision: str, *folder: str) -> list[dict[str, Any]]:
        repo = self.find_repo(kind, repo_id)
        files = repo.history[self.find_commit(repo, revision)]
        prefix = "".join(f"{part}/" for part in folder)
        if prefix and not any(name.startswith(prefix) for name in files):
            raise Answer(404, f"{prefix} does not exist on {revision}", "EntryNotFound")
        return [
            self.describe_file(name, content)
            for name, content in sorted(files.items())
            if name.startswith(prefix)
        ]

    def post_paths_info(self, kind: str, repo_id: str, revision: str) -> list[dict[str, Any]]:
        wanted = parse_qs(self.body.decode()).get("paths") or self.read_json()["paths"]
        return [
            described for described in self.get_tree(kind, repo_id, revision) if described["path"] in wanted
        ]

    def get_refs(self, kind: str, repo_id: str, _: str) -> dict[str, Any]:
        repo = self.find_repo(kind, repo_id)
        groups: dict[str, list[dict[str, str]]] = {
            "branches": [],
            "tags": [],
            "converts": [],
            "pullRequests": [],
        }
        places = {"refs/heads/": "branches", "refs/tags/": "tags", "refs/pr/": "pullRequests"}
        for ref, oid in repo.refs.items():
            prefix = next(prefix for prefix in places if ref.startswith(prefix))
            groups[places[prefix]].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid})
        return groups

    def get_commits(self, kind: str, repo_id: str, revision: str) -> list[dict[str, Any]]:
        """Return the commits of a branch, newest first (each commit follows the one before it here)."""
        repo = self.find_repo(kind, repo_id)
        oids = list(repo.history)
        oids = oids[: oids.index(self.find_commit(repo, revision)) + 1]
        date = "2026-01-01T00:00:00.000Z"
        return [
            {
                "id": oid,
                "title": repo.titles[oid],
                "message": repo.messages.get(oid, ""),
                "date": date,
                "authors": [],
            }
            for oid in reversed(oids)
        ]

    def get_discussions(self, kind: str, repo_id: str, _: str) -> dict[str, Any]:
        repo = self.find_repo(kind, repo_id)
        found = [
            {
                "num": int(ref.removeprefix("refs/pr/")),
                "title": repo.titles[ref],
                "status": "open",
                "isPullRequest": True,
                "author": {"name": USER},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "repo": {"name": repo_id, "type": kind},
            }
            for ref in repo.pull_requests()
        ]
        return {"discussions": found, "count": len(found), "start": 0}

    def resolve(self, kind: str, repo_id: str, revision: str, name: str) -> tuple[int, bytes, dict[str, str]]:
        repo = self.find_repo(kind, repo_id)
        oid = self.find_commit(repo, revision)
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if name not in repo.history[oid]:
            error = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return 404, b'{"error": "Entry not found"}', headers | error
        content = repo.history[oid][name]
        described = self.describe_file(name, content)
        if "lfs" in described:
            headers |= {"X-Linked-Etag": f'"{described["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
        return 200, content, headers | {"ETag": f'"{described["oid"]}"'}

    # ---------------------------------------------------------------------------------------------------- writing

    def create_repo(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.need_token()
        kind = asked.get("type") or "model"
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if repo_id.partition("/")[0] != USER:
            raise Answer(403, f"You don't have the rights to create a {kind} under this namespace")
        if (kind, repo_id) in self.hub.repos:
            raise Answer(409, "You already created this repo", url=url)
        if kind == "space" and self.hub.paid_spaces:
            raise Answer(402, "Payment required: Gradio Spaces need a PRO subscription")
        self.hub.add_repo(
            kind, repo_id, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
        )
        repo = self.hub.repos[kind, repo_id]
        repo.private = asked.get("private") is True or asked.get("visibility") == "private"
        repo.sdk = asked.get("sdk")
        return {"url": url, "name": repo_id, "id": "0"}

    def validate_yaml(self, asked: dict[str, Any]) -> dict[str, Any]:
        match = re.match(r"---\n(.*?)\n---", asked["content"], re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError:
            data = None
        errors = [] if isinstance(data, dict) else ["the metadata is no mapping"]
        for key in ("base_model", "license"):
            value = data.get(key) if isinstance(data, dict) else None
            if value is not None and not re.fullmatch(r"[\w.+-]+(/[\w.-]+)?", str(value)):
                errors.append(f'"{key}" with value {value!r} is not valid')
        if errors:
            raise Answer(400, errors[0], errors=[{"message": error} for error in errors], warnings=[])
        return {"errors": [], "warnings": []}

    def post_preupload(self, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
        self.need_token()
        repo = self.find_repo(kind, repo_id)
        there = repo.history[self.find_commit(repo, revision)]
        answers = []
        for file in self.read_json()["files"]:
            name = file["path"]
            mode = "lfs" if name.endswith(LFS_SUFFIXES) or file["size"] > 10_000_000 else "regular"
            described = self.describe_file(name, there[name]) if name in there else None
            oid = (
                {"oid": described["lfs"]["oid"] if "lfs" in described else described["oid"]}
                if described
                else {}
            )
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False} | oid)
        return {"files": answers}

    def start_uploads(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.need_token()
        objects = []
        for wanted in asked["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            if oid in self.hub.blobs:
                objects.append({"oid": oid, "size": size})
                continue
            header: dict[str, str] = {}
            href = f"{self.hub.url}/lfs/{oid}"
            step = self.hub.part_size
            if step and size > step and "multipart" in asked["transfers"]:
                header = {str(i + 1): f"{href}/{i + 1}" for i in range(-(-size // step))} | {
                    "chunk_size": str(step)
                }
                href = f"{self.hub.url}/lfs-complete"
            actions = {
                "upload": {"href": href, "header": header},
                "verify": {"href": f"{self.hub.url}/lfs-verify"},
            }
            objects.append({"oid": oid, "size": size, "authenticated": True, "actions": actions})
        return {"transfer": "multipart" if self.hub.part_size else "basic", "objects": objects}

    def put_blob(self, oid: str, part: int | None) -> tuple[int, bytes, dict[str, str]]:
        if part is not None:
            self.hub.parts[oid, part] = self.body
            return 200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}
        self.store_blob(oid, self.body)
        return 200, b"", {}

    def store_blob(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Answer(400, f"the content is not that of {oid}")
        self.hub.blobs[oid] = content

    def finish_upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Complete a multipart upload, or verify any upload."""
        oid = asked["oid"]
        if "parts" in asked:
            self.store_blob(oid, b"".join(self.hub.parts[oid, part["partNumber"]] for part in asked["parts"]))
        elif oid not in self.hub.blobs or len(self.hub.blobs[oid]) != asked["size"]:
            raise Answer(400, f"{oid} is not here with {asked['size']} bytes")
        return {"success": True}

    def post_commit(self, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
        self.need_token()
        repo = self.find_repo(kind, repo_id)
        if self.headers.get("Content-Type") != "application/x-ndjson":
            raise Answer(400, "expected application/x-ndjson")
        lines = [json.loads(line) for line in self.body.splitlines()]
        if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
            raise Answer(400, "expected a header with a summary first")
        head, header = self.find_commit(repo, revision), lines[0]["value"]
        if header.get("parentCommit", head) != head:
            raise Answer(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.history[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file" and value["encoding"] == "base64":
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif (
                line["key"] == "lfsFile"
                and value["algo"] == "sha256"
                and len(self.hub.blobs.get(value["oid"], b"")) == value["size"]
            ):
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Answer(400, f"not a valid line: {line['key']} {value.get('path')}")
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if "create_pr" in self.query:
            ref = f"refs/pr/{len(repo.pull_requests()) + 1}"
            repo.titles[ref] = header["summary"]
        oid = repo.commit_files(ref, files, header["summary"])
        repo.messages[oid] = header.get("description", "")
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"}
        if "create_pr" in self.query:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{ref.removeprefix('refs/pr/')}"
        return answer

    def post_tag(self, kind: str, repo_id: str, revision: str) -> dict[str, Any]:
        return self.add_ref(kind, repo_id, f"refs/tags/{self.read_json()['tag']}", revision)

    def post_branch(self, kind: str, repo_id: str, branch: str) -> dict[str, Any]:
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        return self.add_ref(kind, repo_id, f"refs/heads/{branch}", start)

    def add_ref(self, kind: str, repo_id: str, ref: str, start: str) -> dict[str, Any]:
        self.need_token()
        repo = self.find_repo(kind, repo_id)
        oid = self.find_commit(repo, start)
        if ref in repo.refs:
            raise Answer(409, f"Reference already exists: {ref}")
        repo.refs[ref] = oid
        return {}
