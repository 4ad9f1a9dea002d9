# Untried; see docs/install.md. torch's packages bring CUDA's libraries, and g++ is for torch.compile.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/sagan
ENV PATH=/opt/sagan/bin:$PATH
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY sagan sagan
RUN pip install --no-cache-dir ".[export]"
WORKDIR /work
ENTRYPOINT ["sagan"]
