# One image for every role; docker-compose.yml says which one a container plays.
FROM python:3.11-slim AS build
WORKDIR /build
COPY requirements.lock pyproject.toml README.md ./
RUN python -m venv /opt/orchestrator && /opt/orchestrator/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY orchestrator ./orchestrator
COPY config ./config
COPY jobs ./jobs
RUN /opt/orchestrator/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim
# glibc keeps an arena per thread, and a worker has many threads.
ENV PATH=/opt/orchestrator/bin:$PATH PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2 ORCHESTRATOR_HOME=/work/.orchestrator
RUN useradd --uid 1000 --create-home orchestrator && mkdir /work && chown orchestrator /work
COPY --from=build /opt/orchestrator /opt/orchestrator
USER orchestrator
WORKDIR /work
STOPSIGNAL SIGTERM
ENTRYPOINT ["orchestrator"]
CMD ["--help"]
