# CPU by default, CUDA with `--build-arg TORCH=gpu` (run that one with `--gpus all`):
#   docker build -t dlm .
#   docker run --rm -v "$PWD:/workspace" dlm generate checkpoint=austen
FROM python:3.11-slim

ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# A C++ compiler, because torch.compile builds its kernels when it runs.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml README.md LICENSE /opt/dlm/
COPY constraints /opt/dlm/constraints
COPY configs /opt/dlm/configs
COPY dlm /opt/dlm/dlm
WORKDIR /opt/dlm
RUN if [ "$TORCH" = gpu ]; then \
        pip install --no-cache-dir ".[tensorboard]"; \
    else \
        pip install --no-cache-dir -c constraints/cpu.txt --extra-index-url "$TORCH_INDEX" ".[tensorboard]"; \
    fi

# Runs, data and caches live in the folder that is mounted here.
WORKDIR /workspace
ENV DLM_CACHE=/workspace/.cache/dlm HF_HOME=/workspace/.cache/huggingface
ENTRYPOINT ["dlm"]
CMD ["--help"]
