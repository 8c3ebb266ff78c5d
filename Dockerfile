# Two images from one file: `--target cortex` (no torch) and `--target neuron` (no Django).
FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
RUN useradd --create-home --uid 10001 cortex && mkdir /data /metrics && chown cortex /data /metrics
WORKDIR /app
VOLUME /data

FROM base AS cortex
COPY constraints.txt requirements-cortex.txt ./
RUN pip install -r requirements-cortex.txt
COPY manage.py ./
COPY cortex_site cortex_site
COPY fleet fleet
COPY inference inference
COPY neuron_agent/__init__.py neuron_agent/protocol.py neuron_agent/
USER cortex
ENV CORTEX_DATA=/data CORTEX_HOST=0.0.0.0
EXPOSE 31313 31314
ENTRYPOINT ["python", "manage.py"]
CMD ["serve", "--role", "gateway"]

FROM base AS neuron
# The kernels, Triton's and those for CPUs, are compiled on the host they run on.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt requirements-neuron.txt ./
RUN pip install -r requirements-neuron.txt
COPY neuron_agent neuron_agent
USER cortex
ENV NEURON_HOST=0.0.0.0 HF_HOME=/data/huggingface
EXPOSE 13131
ENTRYPOINT ["python", "-m", "neuron_agent"]
