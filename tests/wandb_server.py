"""A stub of Weights & Biases' protocol on loopback, which the real client takes for the server.

It keeps what arrives, and remembers every request that it does not know: a test asks for
`unknown` at its end.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import unquote

ENTITY = "someone"
KEY = "k" * 40
_MANIFEST = "wandb_manifest.json"
_DAY = "2026-01-01T00:00:00Z"
_VIEWER = {"id": "dg==", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
_ALWAYS: dict[str, Any] = {
    "Viewer": {"viewer": {**_VIEWER, "teams": {"edges": []}}},
    "GetDefaultEntity": {"viewer": {"id": "dg==", "entity": ENTITY}},
    "ServerFeaturesQuery": {"serverInfo": {"features": []}},
    "OrganizationCoreWeaveOrganizationID": {
        "entity": {"organization": {"coreWeaveOrganizationId": None}}
    },
    "ArtifactType": {"project": {"artifact": None}},
}
"""What is answered to some operations, whatever is asked."""


@dataclass
class ReceivedRun:
    """What arrived of one run."""

    attributes: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    def lines(self, name: str) -> list[str]:
        """Return the lines of a stream, which the client counts from 0."""
        stream = self.streams.get(name, {})
        assert sorted(stream) == list(range(len(stream))), f"{name} has gaps"
        return [stream[number] for number in sorted(stream)]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the history, in the order of their arrival in the stream."""
        return [json.loads(line) for line in self.lines("wandb-history.jsonl")]

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary."""
        stream = self.streams.get("wandb-summary.json", {})
        return json.loads(stream[max(stream)]) if stream else {}

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, without the client's own part."""
        config = json.loads(self.attributes["config"])
        return {name: each["value"] for name, each in config.items() if name != "_wandb"}


@dataclass
class ReceivedArtifact:
    """What arrived of one artifact: its description, and the bytes of its files."""

    input: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class WandbServer:
    """The server; use it in a `with` block.

    It answers 503 to everything while it is `failing`, which it is from a request for `/die`, or
    for an address with `dies_at` in it, on.
    """

    def __init__(self) -> None:
        self.runs: dict[str, ReceivedRun] = {}
        self.artifacts: dict[str, ReceivedArtifact] = {}
        self.views: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self.failing = False
        self.dies_at = ""
        self._lock = threading.Lock()
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True

    @property
    def address(self) -> str:
        """What `WANDB_BASE_URL` is set to."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def artifact(self, kind: str) -> ReceivedArtifact:
        """Return the one artifact of a type."""
        (found,) = [a for a in self.artifacts.values() if a.input["artifactTypeName"] == kind]
        return found

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == "/die" or (server.dies_at and server.dies_at in self.path):
                    server.failing = True
                if server.failing:
                    status, content = 503, {}
                else:
                    with server._lock:
                        status, content = server._answered(self.command, unquote(self.path), body)
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = answer

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):  # of a client that was killed
                    super().handle_one_request()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def _answered(self, command: str, path: str, body: bytes) -> tuple[int, Any]:
        parts = path.partition("?")[0].strip("/").split("/")
        if (command == "GET" and parts == [""]) or parts[:2] == ["sdk", "otel"]:
            return 200, {}  # a probe; the client's own telemetry
        if command == "POST" and parts == ["graphql"]:
            request = json.loads(body)
            named = re.search(r"\b(?:query|mutation)\s+(\w+)", request["query"])
            name = named[1] if named else ""
            if name in _ALWAYS:
                return 200, {"data": _ALWAYS[name]}
            operation: Callable[..., Any] | None = getattr(self, f"_{name}", None)
            if operation is not None:
                return 200, {"data": operation(request.get("variables") or {})}
        elif command == "POST" and parts[-1] == "file_stream":
            self._stream(self.runs[parts[-2]], json.loads(body))
            return 200, {"exitcode": None, "limits": {}}
        elif command == "PUT" and parts[0] in ("run", "artifact"):
            owners: Mapping[str, ReceivedRun | ReceivedArtifact]
            owners = self.runs if parts[0] == "run" else self.artifacts
            owners[parts[1]].files["/".join(parts[2:])] = body
            return 200, {}
        self.unknown.append(f"{command} {path} {body[:300]!r}")
        return 400, {"errors": [{"message": f"unknown: {self.unknown[-1]}"}]}

    def _stream(self, run: ReceivedRun, content: dict[str, Any]) -> None:
        for name, chunk in content.get("files", {}).items():
            lines = run.streams.setdefault(name, {})
            lines.update(enumerate(chunk["content"], start=chunk["offset"]))
        if content.get("complete"):
            run.exit_code = content["exitcode"]

    def _bucket(self, name: str) -> dict[str, Any] | None:
        """What any operation asks of a run; None of one that is not there."""
        if name not in self.runs:
            return None
        run = self.runs[name]
        project = {"id": "1", "name": run.attributes["project"]}
        bucket: dict[str, Any] = {
            **dict.fromkeys(("state", "group", "jobType", "commit", "notes", "description"), ""),
            **dict.fromkeys(("createdAt", "heartbeatAt"), _DAY),
            "id": base64.b64encode(name.encode()).decode(),
            "name": name,
            "displayName": run.attributes.get("displayName"),
            "config": run.attributes.get("config", "{}"),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "wandbConfig": json.dumps({"t": 1}),
            "tags": [],
            "sweepName": None,
            "readOnly": False,
            "logLineCount": len(run.streams.get("output.log", {})),
            "historyKeys": {
                "lastStep": max((row["_step"] for row in run.history), default=-1),
                "keys": {},
                "sets": [],
            },
            "user": {"name": ENTITY, "username": ENTITY},
            "project": {**project, "entity": {"id": "ZQ==", "name": ENTITY}},
            "projectId": "1",
        }
        for kind in ("history", "events"):
            lines = run.lines(f"wandb-{kind}.jsonl")
            bucket |= {f"{kind}LineCount": len(lines), f"{kind}Tail": json.dumps(lines[-1:])}
        return bucket

    def _UpsertBucket(self, variables: dict[str, Any]) -> Any:
        name = variables["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, ReceivedRun())
        run.attributes |= {key: value for key, value in variables.items() if value is not None}
        return {"upsertBucket": {"bucket": self._bucket(name), "inserted": inserted}}

    def _RunResumeStatus(self, variables: dict[str, Any]) -> Any:
        project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": ENTITY}}
        return {"model": {**project, "bucket": self._bucket(variables["name"])}}

    def _Run(self, variables: dict[str, Any]) -> Any:
        return {"project": {"run": self._bucket(variables["name"])}}

    _RunHistoryKeys = _Run

    def _GetProjects(self, variables: dict[str, Any]) -> Any:
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        names = {run.attributes["project"] for run in self.runs.values()}
        same = {"id": "1", "entityName": ENTITY, "createdAt": _DAY, "isBenchmark": False}
        edges = [{"node": {**same, "name": name, "user": None}} for name in sorted(names)]
        return {"models": {"pageInfo": page, "edges": edges}}

    def _upsertView(self, variables: dict[str, Any]) -> Any:
        self.views.append(variables)
        project = {"id": "1", "name": variables["projectName"], "entityName": ENTITY}
        shown = {name: variables[name] for name in ("name", "displayName", "description", "spec")}
        view = {**shown, "id": "Vmlldzox", "type": "runs", "project": project, "updatedAt": None}
        return {"upsertView": {"view": view, "inserted": True}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> Any:
        run, names = variables["run"], variables["files"]
        files = [{"name": name, "uploadUrl": f"{self.address}/run/{run}/{name}"} for name in names]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, variables: dict[str, Any]) -> Any:
        described = variables["input"]
        identity = f"artifact-{described['digest']}"
        received = self.artifacts.setdefault(identity, ReceivedArtifact(described))
        state = "COMMITTED" if received.committed else "PENDING"
        sequence = {"latestArtifact": None}
        artifact = {"id": identity, "state": state, "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _ArtifactByID(self, variables: dict[str, Any]) -> Any:
        artifact = self.artifacts[variables["id"]]
        texts = ("description", "metadata", "historyStep", "commitHash", "updatedAt")
        sequence = {"__typename": "ArtifactSequence", "name": "sequence", "project": None}
        found = {
            **dict.fromkeys(texts),
            **dict.fromkeys(("versionIndex", "ttlDurationSeconds", "size", "fileCount"), 0),
            "__typename": "Artifact",
            "id": variables["id"],
            "artifactSequence": sequence,
            "artifactType": {"name": artifact.input["artifactTypeName"]},
            "ttlIsInherited": True,
            "tags": [],
            "aliases": [],
            "state": "COMMITTED",
            "digest": artifact.input["digest"],
            "createdAt": _DAY,
        }
        return {"artifact": found}

    def _CreateArtifactManifest(self, variables: dict[str, Any]) -> Any:
        identity = variables["artifactID"]
        address = f"{self.address}/artifact/{identity}/{_MANIFEST}"
        file = {"id": "Zg==", "uploadUrl": address, "uploadHeaders": []}
        manifest = {"id": f"manifest-{identity}", "file": file}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _CreateArtifactFiles(self, variables: dict[str, Any]) -> Any:
        edges = [
            {
                "node": {
                    "storagePath": each["name"],
                    "uploadUrl": f"{self.address}/artifact/{each['artifactID']}/{each['name']}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": each["artifactID"]},
                }
            }
            for each in variables["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, variables: dict[str, Any]) -> Any:
        artifact = self.artifacts[variables["artifactID"]]
        for name, entry in json.loads(artifact.files.pop(_MANIFEST))["contents"].items():
            digest = base64.b64encode(hashlib.md5(artifact.files[name]).digest()).decode()
            assert digest == entry["digest"], name
        artifact.committed = True
        identity = {"id": variables["artifactID"], "digest": artifact.input["digest"]}
        return {"commitArtifact": {"artifact": identity}}
