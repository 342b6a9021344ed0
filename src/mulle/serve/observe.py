"""What traces and the access log are told of every prediction answered; nothing of what was in it."""

import time

from mulle.serve.http.heads import Head
from mulle.serve.plane.jobs import Job
from mulle.serve.protocols.predict import ROUTE
from mulle.serve.telemetry.logs import Access, AccessLog
from mulle.serve.telemetry.tracing import RequestTrace, Tracer, parse_parent


class PredictionObserver:
    """Tells a tracer and an access log, whichever there is.

    Args:
        tracer: Takes spans; None: nobody does.
        access: Takes lines; None: nobody does.
    """

    def __init__(self, tracer: Tracer | None, access: AccessLog | None) -> None:
        self._tracer = tracer
        self._access = access

    def __call__(self, head: Head, job: Job, status: int) -> None:
        """Take note of an answered request."""
        now_ns = time.monotonic_ns()
        served, batch = job.served, job.batch
        if self._tracer is not None:
            parent = parse_parent(head.headers.get("traceparent"))
            if self._tracer.wants(parent):
                self._tracer.record(
                    RequestTrace(
                        ROUTE,
                        head.method,
                        status,
                        job.started_ns,
                        now_ns,
                        parent,
                        head.headers.get("tracestate", ""),
                        served.home.name,
                        served.number,
                        job.prediction_ids()[0] if batch is not None and job.n_rows else "",
                        job.n_rows,
                        0 if batch is None else batch.n_rows,
                        0 if batch is None else batch.began_ns,
                        0 if batch is None else batch.began_ns + batch.took_ns,
                        "" if job.error is None else job.error.code,
                    )
                )
        if self._access is not None:
            self._access.add(
                Access(
                    time.time_ns(),
                    head.method,
                    head.path,
                    status,
                    now_ns - job.started_ns,
                    deployment=served.home.name,
                    revision=served.number,
                    request_bytes=job.n_bytes,
                    prediction_id=job.prediction_ids()[0] if batch is not None and job.n_rows else "",
                )
            )
