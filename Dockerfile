FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NUMBA_CACHE_DIR=/home/runner/.cache/numba

RUN useradd --create-home --uid 1000 runner \
    && install -d -o runner -g runner /home/runner/.cache/numba /var/lib/runner

WORKDIR /src

# Dependencies first: this layer is built again only when they change.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && pip install -c constraints.txt -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt

COPY LICENSE README.md ./
COPY runner runner
COPY workers workers
COPY tasks tasks
RUN pip install --no-deps .

USER runner
WORKDIR /home/runner
CMD ["runner", "worker", "--queues", "backtest"]
