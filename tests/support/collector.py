"""An OTLP collector on a free port that keeps what it is sent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATH = "/v1/traces"


@dataclass(frozen=True)
class Collector:
    """Where to post spans, and those that were."""

    url: str
    spans: list[Any] = field(default_factory=list)

    def trace(self, trace_id: str) -> dict[str, Any]:
        """The spans of a trace, by name."""
        wanted = bytes.fromhex(trace_id)
        return {span.name: span for span in list(self.spans) if span.trace_id == wanted}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Collect until the block ends."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == PATH
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield Collector(f"http://127.0.0.1:{server.server_port}{PATH}", spans)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
