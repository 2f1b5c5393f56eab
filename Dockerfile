# docker build -t modelctl . && docker run --rm -e MODELCTL_DATABASE_URL -e MODELCTL_REDIS_URL modelctl count
FROM python:3.14-slim AS build

WORKDIR /src
COPY . .
RUN python -m venv /opt/modelctl \
    && /opt/modelctl/bin/pip install --no-cache-dir '.[probe,notify]'

FROM python:3.14-slim

# Without a database of its own the fleet is in SQLite, below /data.
ENV PATH=/opt/modelctl/bin:$PATH \
    XDG_DATA_HOME=/data \
    PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin modelctl \
    && install --directory --owner=modelctl --group=modelctl --mode=0700 /data
COPY --from=build /opt/modelctl /opt/modelctl

USER 10001
WORKDIR /home/modelctl
VOLUME /data
STOPSIGNAL SIGTERM
# It opens no port: what is checked is what a person would check.
HEALTHCHECK --interval=1m --timeout=30s --start-period=30s --retries=3 CMD ["modelctl", "doctor"]
ENTRYPOINT ["modelctl"]
CMD ["run", "--actor", "docker"]
