#!/usr/bin/env bash
# The compose file on a real engine: everything becomes healthy, the demo job reaches `deployed` although the bus is restarted
# in the middle, the model answers, and `down` leaves nothing. Where the images can't be pulled, base_images.sh makes them.
set -euo pipefail
cd "$(dirname "$0")/../.."
docker info >/dev/null 2>&1 || { echo "skipped: no Docker engine answers"; exit 0; }

export COMPOSE_PROJECT_NAME=llmos-test LLMOS_NODE=compose NATS_PORT=0 HTTP_PORT=0
export PYTHON_IMAGE=${PYTHON_IMAGE:-python:3.11-slim-bookworm} NATS_IMAGE=${NATS_IMAGE:-nats:2.15.1}
if ! docker image inspect "$PYTHON_IMAGE" "$NATS_IMAGE" >/dev/null 2>&1 && ! timeout 60 docker pull -q "$NATS_IMAGE" 2>/dev/null; then
  # shellcheck source=/dev/null
  . deploy/install.sh dev
  bash tests/system/base_images.sh "$PYTHON_IMAGE" "$NATS_IMAGE" llmos-test/seaweedfs
fi
if docker image inspect llmos-test/seaweedfs >/dev/null 2>&1; then
  export S3_IMAGE=llmos-test/seaweedfs
  export S3_COMMAND="mini -dir=/data -ip.bind=0.0.0.0 -s3.port=9000 -admin.ui=false -webdav=false -master.telemetry=false"
fi
log=$(mktemp -d)
finish() {
  status=$?
  [ $status = 0 ] || { docker compose ps -a; docker compose logs --tail 40; } || true
  docker compose --profile demo down -v --remove-orphans -t 10 >/dev/null 2>&1 || true
  rm -rf "$log"
  exit $status
}
trap finish EXIT

echo "== build"
for service in vault audit scheduler hw-agent inferencer gateway exporter trainer demo; do
  docker compose --profile demo build -q "$service"
done
echo "== up"
docker compose up -d --wait --wait-timeout 180
echo "== the demo job, with a restart of the bus while it trains"
docker compose run --rm -T demo >"$log/demo" 2>&1 &
demo=$!
for _ in $(seq 300); do
  grep -q "train" "$log/demo" && break
  kill -0 $demo 2>/dev/null || break
  sleep 1
done
docker compose restart nats
wait $demo || { cat "$log/demo"; exit 1; }
cat "$log/demo"
grep -q deployed "$log/demo"
echo "== the model answers"
docker compose run --rm -T demo llmos infer reviews "The battery lasts for days and the screen is gorgeous." | tee "$log/infer"
grep -q positive "$log/infer"
echo "== non-root, healthy"
for service in vault audit scheduler hw-agent trainer exporter inferencer gateway; do
  user=$(docker compose exec -T "$service" id -u)
  [ "$user" != 0 ] || { echo "$service runs as root"; exit 1; }
done
docker compose ps --format '{{.Service}} {{.Status}}'
echo passed
