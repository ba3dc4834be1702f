# mpserve in an image that runs as any user, as PID 1, on a read-only root file system.
#
#   docker build --build-arg EXTRAS=torch --tag mpserve .
#   docker run --publish 8080:8080 --volume "$PWD/examples/digits:/mnt/models:ro" mpserve
#
# scripts/run_dockerfile.py runs these steps without a Docker engine. It knows only the instructions in this file, and maps the
# paths in ENV, COPY and WORKDIR. So a RUN step finds its files through the environment, not by absolute paths.

FROM python:3.12-slim AS build
# Extras of the package, comma-separated: `sklearn,grpc`. pyproject.toml has the list. simdjson, which reads long lists of numbers
# in less than half the time, has a wheel for this Python and is always there.
ARG EXTRAS
# pip reads this variable itself: another package index, for example an index with CPU-only builds of torch.
ARG PIP_EXTRA_INDEX_URL
# So is this one: PIP_CONSTRAINT=constraints.txt takes the versions of deploy/constraints.txt, so that every build has the same.
ARG PIP_CONSTRAINT
ENV VIRTUAL_ENV=/opt/mpserve
ENV PATH=/opt/mpserve/bin:$PATH
WORKDIR /src
COPY pyproject.toml README.md LICENSE deploy/constraints.txt ./
COPY mpserve ./mpserve
RUN python -m venv "$VIRTUAL_ENV"
RUN pip install --no-cache-dir ".[simdjson${EXTRAS:+,$EXTRAS}]"

FROM python:3.12-slim
COPY --from=build /opt/mpserve /opt/mpserve
# USER and HOME are set here because the user has no line in /etc/passwd.
ENV PATH=/opt/mpserve/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=mpserve \
    MPSERVE_HTTP_PORT=8080 \
    MPSERVE_IGNORE_UNKNOWN_FLAGS=true \
    MPSERVE_DRAIN_DELAY=5
# The folder is empty. An image may add its own model: COPY model.py . and CMD ["model.py"].
WORKDIR /app
USER 1000:1000
EXPOSE 8080
# Kubernetes has its own probes and ignores this check. The check reads MPSERVE_HTTP_PORT: it sees no port of a flag, and no TLS.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['MPSERVE_HTTP_PORT'] + '/v2/health/live', timeout=4)"]
ENTRYPOINT ["mpserve", "serve"]
CMD ["--model_dir=/mnt/models"]
