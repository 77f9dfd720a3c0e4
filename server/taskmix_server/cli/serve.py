"""`taskmix serve`."""

from pathlib import Path
from typing import Any

import click

from taskmix_server.engine.config import DELTA_CACHE_BYTES, KERNELS, EngineConfig
from taskmix_server.settings import (
    Settings,
    default_cache,
    default_state,
    prepare_engine_environment,
)
from taskmix_server.telemetry.config import LOG_FORMATS, TelemetryConfig
from taskmix_server.tenancy.config import AccessConfig

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--base", type=DIRECTORY, required=True, help="The base model's directory.")
@click.option("--bank", type=DIRECTORY, required=True, help="The bank's directory.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=lambda context, _, path: _read_config(context, path),
    is_eager=True,
    expose_value=False,
    help="A TOML file of these options, named as here without the dashes; a flag given wins.",
)
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), default=default_state)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=50051, show_default=True)
@click.option("--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto"
)
@click.option("--max-model-len", type=click.IntRange(1), help="Tokens of prompt and answer.")
@click.option("--kv-cache-memory", type=click.IntRange(1), help="Bytes for keys and values.")
@click.option(
    "--delta-cache-memory",
    type=click.IntRange(0),
    default=DELTA_CACHE_BYTES,
    show_default=True,
    help="Bytes for merged weights, and for dense forms of deltas that the kernel cannot read.",
)
@click.option(
    "--kernel",
    type=click.Choice(KERNELS),
    default="auto",
    show_default=True,
    help="What multiplies coded deltas: the compiled kernel, PyTorch, or Triton's kernels (GPUs).",
)
@click.option(
    "--device-slots",
    type=click.IntRange(1),
    help="Tasks that --kernel triton has room for, taken at the start; one more than the bank's "
    "if absent.",
)
@click.option(
    "--task-memory",
    type=click.IntRange(1),
    help="Bytes that tasks may take in the engine. Those used least recently make room and are "
    "loaded again when a request names them; without this, every task stays.",
)
@click.option("--served-model-name", help="The base's name in `model`; its directory's if absent.")
@click.option("--max-num-seqs", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--max-queued",
    type=click.IntRange(1),
    help="Answers that may wait for the engine; four times --max-num-seqs if absent.",
)
@click.option(
    "--engine-timeout",
    type=click.FloatRange(1.0),
    default=120.0,
    show_default=True,
    help="Seconds after which an engine that gives no answer is ended and started again.",
)
@click.option("--max-num-batched-tokens", type=click.IntRange(1), help="Tokens of one step.")
@click.option("--block-size", type=click.IntRange(1), help="Tokens of a KV block.")
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    default="text",
    show_default=True,
    help="How lines on stderr are written.",
)
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    help="Where traces are posted, such as http://HOST:4318/v1/traces; none if absent.",
)
@click.option("--tls-cert", type=FILE, help="The certificate's chain, PEM; read again on change.")
@click.option("--tls-key", type=FILE, help="The certificate's private key, PEM.")
@click.option(
    "--allow-unauthenticated",
    is_flag=True,
    help="Without tenants, serve anybody on other addresses than loopback too.",
)
@click.option("--metrics-open", is_flag=True, help="Serve /metrics without an admin's key.")
def serve(
    *,
    base: Path,
    bank: Path,
    state: Path,
    host: str,
    grpc_port: int,
    http_port: int,
    kv_cache_memory: int | None,
    delta_cache_memory: int,
    task_memory: int | None,
    kernel: str,
    log_format: str,
    otlp_endpoint: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    allow_unauthenticated: bool,
    metrics_open: bool,
    max_queued: int | None,
    engine_timeout: float,
    **engine: Any,
) -> None:
    """Serve a base and its bank over gRPC and HTTP until SIGTERM.

    Prints one line of JSON on stdout when it takes requests; logs go to stderr.
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    prepare_engine_environment()
    from taskmix_server.app import serve as run
    from taskmix_server.telemetry.logs import configure

    configure(log_format)
    config = EngineConfig(
        base,
        bank,
        kv_cache_memory_bytes=kv_cache_memory,
        delta_cache_bytes=delta_cache_memory,
        digest_cache=default_cache() / "digests.json",
        cost_cache=default_cache() / "costs.json",
        kernel=kernel,
        **engine,
    )
    telemetry = TelemetryConfig(log_format, otlp_endpoint)
    access = AccessConfig(tls_cert, tls_key, allow_unauthenticated, metrics_open)
    run(
        Settings(
            config,
            state,
            host,
            grpc_port,
            http_port,
            max_queued=max_queued,
            engine_timeout_s=engine_timeout,
            task_bytes=task_memory,
            telemetry=telemetry,
            access=access,
        )
    )


def _read_config(context: click.Context, path: Path | None) -> None:
    """Make a TOML file's values the defaults of this command's options."""
    if path is None:
        return
    import tomllib

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise click.UsageError(f"{path} is not TOML: {error}") from error
    known = {parameter.name for parameter in context.command.params} - {"config"}
    named = {key.replace("-", "_"): value for key, value in values.items()}
    unknown = sorted(named.keys() - known)
    if unknown:
        raise click.UsageError(f"{path} has no option {unknown[0]!r}; see `taskmix serve --help`")
    context.default_map = named
