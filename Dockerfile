# syntax=docker/dockerfile:1

FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs README.md ./
COPY proto proto
COPY third_party third_party
COPY src src
# A member of the workspace, which cargo wants to see; it is not built.
COPY bench bench
# The caches outlive the layer, so only what changed is compiled again; the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked && cp target/dist/stepwell /usr/local/bin/stepwell

FROM debian:bookworm-slim
# Certificates for S3, and for MongoDB with TLS.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 stepwell \
    && useradd --uid 10001 --gid stepwell --no-create-home --home-dir /var/lib/stepwell stepwell \
    && install -d -o stepwell -g stepwell -m 0750 /var/lib/stepwell
COPY --from=build /usr/local/bin/stepwell /usr/local/bin/stepwell
COPY LICENSE /usr/share/doc/stepwell/LICENSE

USER stepwell
WORKDIR /var/lib/stepwell
# Inside a container the loopback would be reachable by nobody. Who starts it says whether callers are asked who they are
# (STEPWELL_AUTH_MODE) and whether connections are encrypted (STEPWELL_TLS_MODE): it does not start without both.
ENV STEPWELL_LISTEN=0.0.0.0:50051 \
    STEPWELL_HTTP_LISTEN=0.0.0.0:8080 \
    STEPWELL_DATA_DIR=/var/lib/stepwell
VOLUME /var/lib/stepwell
EXPOSE 50051 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["stepwell", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["stepwell"]
CMD ["serve"]
