# Kiln's image: web, controller and builder are the same installation, started by different commands (docs/image.md).
#
#     make image
#
# What goes in is pinned: Python's packages by hash (requirements/), Debian's by the release of the base. To have the base
# itself bit by bit: --build-arg PYTHON_IMAGE=python:3.13-slim@sha256:…, as `docker buildx imagetools inspect` tells it.
ARG PYTHON_IMAGE=python:3.13-slim

# The virtual environment is made without pip, from outside: none of what installs is in what is installed.
FROM ${PYTHON_IMAGE} AS packages
COPY requirements/otel.txt requirements/
RUN python -m venv --without-pip /opt/kiln && \
    python -m pip --python /opt/kiln/bin/python install --quiet --disable-pip-version-check --no-cache-dir \
        --no-compile --require-hashes --requirement requirements/otel.txt
# Three quarters of the whole, and nothing of Kiln can reach it: it speaks JSON over the client's configuration and REST
# client, so neither the client for asyncio nor what is generated for each kind of object is ever imported.
RUN cd /opt/kiln/lib/python*/site-packages/kubernetes && \
    rm -r aio client/api && \
    find client/models -type f ! -name __init__.py -delete
# Compiled here, as nobody may write there later. By hash and unchecked: the files never change, and their times may.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/kiln/lib

# Kiln itself is a layer of its own: a new version of it is one megabyte to pull.
FROM packages AS kiln
COPY requirements/build.txt requirements/
RUN python -m venv --without-pip /opt/build && \
    python -m pip --python /opt/build/bin/python install --quiet --disable-pip-version-check --no-cache-dir \
        --require-hashes --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE source/
COPY builds source/builds
COPY eventing source/eventing
COPY handlers source/handlers
COPY kiln source/kiln
RUN cd source && /opt/build/bin/python -m hatchling build -t wheel && \
    python -m pip --python /opt/kiln/bin/python install --quiet --disable-pip-version-check --no-cache-dir \
        --no-compile --no-deps --no-index --root /made dist/*.whl && \
    python -m compileall -q -s /made --invalidation-mode unchecked-hash /made/opt/kiln/lib

FROM ${PYTHON_IMAGE}
# git fetches, the docker command and buildx build, or podman-remote. Perl, half as big as all of them, is there for commands of git that
# are not ours (add -p, send-email, svn), so it goes in the same layer. Python's own library comes without compiled files
# in some bases: every start would pay for that, as the root file system is read-only.
RUN apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        ca-certificates docker-buildx docker-cli git podman-remote && \
    dpkg --purge --force-depends \
        $(dpkg-query -W -f '${Package}\n' git-man liberror-perl perl 'perl-modules-*' 'libperl5*' 'libgdbm*') && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log && \
    python -m compileall -q -j 0 \
        -x '/(ensurepip|idlelib|site-packages|dist-packages|test|tests|tkinter|turtledemo)/' \
        "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" && \
    groupadd --gid 1000 kiln && \
    useradd --uid 1000 --gid 1000 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin kiln
COPY --from=packages /opt/kiln /opt/kiln
COPY --from=kiln /made /

ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=https://github.com/kiln-images/kiln
LABEL org.opencontainers.image.title="Kiln" \
      org.opencontainers.image.description="CloudEvents in, notebook images out" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="BSD-3-Clause"

# /tmp is the one place that may be written to.
ENV PATH=/opt/kiln/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000:1000
CMD ["kiln", "web"]
