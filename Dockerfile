# syntax=docker/dockerfile:1
# The toolkit with CUDA, vLLM and its other extras. It was never built: the project's machines have no Docker.
#
#   docker build --tag sailvl2-rl .
#   docker run --gpus all --ipc=host --volume "$PWD:/work" sailvl2-rl python -m rlhf.train --help
#
# --ipc=host: samplers and trainer exchange weights through shared memory, of which a container has 64 MB by default.
# The base image brings the driver's interface alone; the CUDA libraries come with torch's wheel.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev gcc libgl1 make \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# Dependencies first, so that a change of the code does not install them anew.
WORKDIR /opt/sailvl2-rl
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python - <<'EOF' > /tmp/requirements.txt
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
wanted = [one for name in ("hf", "video", "data", "look", "vllm") for one in extras[name]]
print("\n".join([*project["dependencies"], *wanted]))
EOF
RUN pip install --constraint constraints.txt --requirement /tmp/requirements.txt

COPY . .
RUN pip install --no-deps .

RUN useradd --create-home trainer
USER trainer
WORKDIR /work
CMD ["sailvl2-rl", "--help"]
