# syntax=docker/dockerfile:1
# The picker's image for linux/amd64 and linux/arm64, cross-compiled on the machine's own architecture: nothing is
# emulated. Every step is deploy/image/build.sh, which CI runs without a container too.
#
#   make image                                   # both architectures, into target/image/warmroute.oci.tar
#   docker build -t warmroute .                  # this machine's architecture, into the local engine
#
# Both base images can be given with a digest: docs/kubernetes/image.md.
ARG BUILD_IMAGE=docker.io/library/rust:1.95.0-bookworm
ARG BASE_IMAGE=gcr.io/distroless/base-nossl-debian12:nonroot

FROM --platform=$BUILDPLATFORM ${BUILD_IMAGE} AS tools
# Whatever version of pip there is: it fetches fixed versions.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY deploy/image/build.sh deploy/image/
RUN deploy/image/build.sh tools

# Manifests and empty sources. What comes out is the same, and with it all layers that are made from it, until a manifest
# or the lock file changes.
FROM --platform=$BUILDPLATFORM ${BUILD_IMAGE} AS skeleton
WORKDIR /src
COPY . .
RUN deploy/image/build.sh skeleton /skeleton

FROM tools AS build
ARG TARGETARCH
ARG PROFILE=release
COPY --from=skeleton /skeleton ./
RUN deploy/image/build.sh build "$TARGETARCH"
COPY . .
ARG COMMIT=unknown
# Cargo may take what the skeleton's packages became for these: it is told to forget them.
RUN find target -path '*/.fingerprint/warmroute*' -prune -exec rm -rf {} + \
 && WARMROUTE_COMMIT="$COMMIT" OUT=/out deploy/image/build.sh build "$TARGETARCH" \
 && mv "/out/linux-$TARGETARCH/warmroute" /out/warmroute

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG COMMIT=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="Warmroute" \
      org.opencontainers.image.description="An endpoint picker for LLM inference: sends each request to the engine whose KV cache is warmest" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.source="$SOURCE"
COPY --from=build --chmod=0755 /out/warmroute /usr/local/bin/warmroute
# By number, so that Kubernetes can tell that it isn't root.
USER 65532:65532
# ext-proc, gRPC health, metrics, snapshots for siblings, KV events of engines that connect.
EXPOSE 9002 9003 9090 9004 5557
ENTRYPOINT ["/usr/local/bin/warmroute"]
