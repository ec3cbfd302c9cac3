# The CPU image: the pipeline with its pinned environment, as a user without rights.
#   docker build -t cahl .
#   docker run --name cahl-run cahl                 # the quickstart
#   docker cp cahl-run:/app/reports reports         # its report; models/ and mlflow.db likewise
# Without a network: -v "$PWD/wheels:/mirror:ro" -e CAHL_MIRROR=/mirror, the wheels of data/sources.yaml.
FROM python:3.11-slim-bookworm AS build
WORKDIR /app
# CPU builds of torch; a folder of wheels in pip's configuration has precedence
ENV TORCH_BACKEND=cpu CAHL_EXTRAS= PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY scripts/environment.sh scripts/
# the packages' names only: a change of code does not install everything anew
RUN mkdir cahl_core pipelines && touch cahl_core/__init__.py pipelines/__init__.py \
    && bash scripts/environment.sh /app/.venv \
    && rm -rf /app/.venv/bin/uv /app/.venv/bin/uvx

FROM python:3.11-slim-bookworm AS runtime
RUN groupadd --gid 10001 cahl && useradd --uid 10001 --gid cahl --create-home cahl \
    && mkdir /app && chown cahl:cahl /app
WORKDIR /app
COPY --from=build --chown=cahl:cahl /app/.venv .venv
COPY --chown=cahl:cahl . .
USER cahl
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    DAGSTER_DISABLE_TELEMETRY=1 \
    DVC_NO_ANALYTICS=1 \
    ITERATIVE_DO_NOT_TRACK=1 \
    DO_NOT_TRACK=true \
    GX_ANALYTICS_ENABLED=false
EXPOSE 3000 5000
CMD ["python", "-m", "pipelines.run"]
