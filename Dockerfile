# The worker and the `scoring` command: `docker compose build`, or `docker build --tag assessment-scoring .`
#
# A scorer of your own (SCORING_SCORER=package.module:factory) goes into an image that begins FROM this one.

# The version that the tests run on and that the lock was made for.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
# pip and the build backend live apart from what is shipped.
RUN python -m venv /opt/build && python -m venv --without-pip /opt/scoring

# The dependencies change seldom, the project often: this layer is kept until the lock changes.
COPY requirements/worker.lock requirements/dev.lock requirements/
RUN /opt/build/bin/pip --python /opt/scoring/bin/python install \
        --require-hashes --only-binary :all: --requirement requirements/worker.lock
# The build backend with what it needs, and nothing else of the development lock. If it ever needs more, this fails.
RUN awk '/^[a-z]/ { keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } keep' \
        requirements/dev.lock > requirements/build.lock \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: --requirement requirements/build.lock

COPY pyproject.toml README.md LICENSE ./
COPY alembic alembic
COPY storage storage
COPY producers producers
COPY worker worker
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/build/bin/pip --python /opt/scoring/bin/python install --no-deps dist/*.whl


FROM python:${PYTHON_VERSION}-slim
RUN python -m pip uninstall --yes setuptools wheel pip \
    && groupadd --system --gid 10001 scoring \
    && useradd --system --uid 10001 --gid scoring --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin scoring
COPY --from=build /opt/scoring /opt/scoring
ENV PATH=/opt/scoring/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
STOPSIGNAL SIGTERM
CMD ["scoring", "worker"]
