#!/usr/bin/env bash
# One training on a machine of Hugging Face Jobs; started again up to three times, it goes on where it was.
#   recipes/launch/hf-jobs.sh OWNER/BUCKET recipes/bloom.yaml [--key value …]
# GIT names the repository that the job clones, FLAVOR the machine (hf jobs hardware), all of whose GPUs are used.
# Shared with later jobs: /runs, the bucket, which is mounted for reading and writing. Not shared: all else on the machine.
# Only the job's configuration was tried (hf jobs run --dry-run), not a job.
set -euo pipefail
bucket=$1 recipe=$2
shift 2
hf jobs run --detach --flavor "${FLAVOR:-a10g-large}" --timeout "${TIMEOUT:-12h}" --attempts 3 --secrets HF_TOKEN \
    --volume "hf://buckets/$bucket:/runs" ${DRY_RUN:+--dry-run} python:3.11 bash -c '
set -euo pipefail
git clone --depth 1 "$0" project && cd project
make .venv/.installed PYTHON=python3
recipe=$1; shift
exec .venv/bin/torchrun --nproc-per-node gpu sft/run.py "$recipe" --output_dir "/runs/$(basename "$recipe" .yaml)" \
    --resume auto "$@"' "${GIT:?set GIT to the repository to clone}" "$recipe" "$@"
