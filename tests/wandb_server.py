"""A W&B server on the loopback: GraphQL to begin and resume runs, and the stream of history."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

USER = {
    "id": "u",
    "name": "me",
    "username": "me",
    "entity": "me",
    "flags": "{}",
    "email": "",
    "teams": {"edges": []},
}


class Server(ThreadingHTTPServer):
    """rows: history of each run by id, in its order. fails: answers 500 to everything."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.rows, self.fails = {}, False

    def take_history(self, run_id, chunk):
        rows = self.rows[run_id]
        assert chunk["offset"] <= len(rows), "a gap"
        rows[chunk["offset"] :] = map(json.loads, chunk["content"])

    def answer(self, query, values):
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)[1]
        if name == "UpsertBucket":
            self.rows.setdefault(values["name"], [])
            project = {"id": "p", "name": "x", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": values["name"], "project": project}
            bucket["historyLineCount"] = len(self.rows[values["name"]])
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "RunResumeStatus" and values["name"] in self.rows:
            return {
                "model": {
                    "id": "p",
                    "name": "x",
                    "entity": {"id": "e", "name": "me"},
                    "bucket": self.state(values),
                }
            }
        files = {"runID": "b", "uploadHeaders": [], "files": []}
        return {
            "viewer": USER,
            "serverInfo": {"features": []},
            "model": None,
            "createRunFiles": files,
        }

    def state(self, values):
        rows = self.rows[values["name"]]
        tail, last = [json.dumps(row) for row in rows[-1:]], json.dumps(rows[-1] if rows else {})
        counts = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps(tail), "eventsTail": "[]", "summaryMetrics": last}
        return (
            {
                "id": "b",
                "name": values["name"],
                "config": "{}",
                "wandbConfig": '{"t": 1}',
                "tags": [],
            }
            | counts
            | tails
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.fails:
            return self.send(500, {})
        if self.path.endswith("/file_stream"):
            for name, chunk in json.loads(body).get("files", {}).items():
                if name == "wandb-history.jsonl":
                    self.server.take_history(self.path.split("/")[-2], chunk)
            return self.send(200, {})
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            return self.send(
                200, {"data": self.server.answer(asked["query"], asked.get("variables", {}))}
            )
        return self.send(200, {})

    do_PUT = do_POST

    def send(self, code, content):
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextmanager
def serving():
    server = Server()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
