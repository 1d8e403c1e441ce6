# Serves a model over HTTP to those who have the token (`sca-hf serve --help`).
#   docker build -t sca-hf .
#   docker run --rm -p 8000:8000 -e SCA_TOKEN=$(openssl rand -hex 16) sca-hf --model OWNER/NAME
FROM python:3.12-slim
# Another package index to look for torch in, for instance PyTorch's own index of CPU builds.
ARG TORCH_INDEX=
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} ".[serve]" \
    && useradd --create-home sca
USER sca
WORKDIR /home/sca
# Models that were downloaded; mount a volume here to keep them.
ENV HF_HOME=/home/sca/models
EXPOSE 8000
# The first process of a container ignores SIGTERM until it asks for it, which is after the model is loaded.
STOPSIGNAL SIGINT
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["sca-hf", "serve", "--host", "0.0.0.0", "--port", "8000"]
