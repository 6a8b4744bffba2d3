#!/usr/bin/env bash
# All stages of 9-class ImageNet on a SLURM cluster: gather if asked to, convert as an array, merge,
# verify, train. Each stage starts when the one before it has succeeded (afterok). If one fails,
# the later ones are cancelled; the same command then continues where it stopped.
#
# The layout of the training is checked before the first stage is submitted.
#
#     launch/imagenet9.sh --source ILSVRC2012 --output shards/imagenet9 -- --gpus-per-node 8
#     launch/imagenet9.sh --source ILSVRC2012 --output shards/imagenet9 \
#         --train imagenet9/rebias_n256 -- --nodes 2 --gpus-per-node 8 --time 12:00:00
#     launch/imagenet9.sh --gather urls.txt --source gathered --output shards/imagenet9
#
#   --source DIR    ILSVRC2012 as archives, or as folders train/ and val/; --gather fills it
#   --output DIR    folder for the shards; the output of the jobs goes to DIR-logs
#   --gather LIST   first fetch the images of a list (lines 'wnid URL'); this is a single job, so
#                   that no host is asked too often
#   --parts N       tasks that convert at a time [8]
#   --max-failed N  addresses of the list that may fail: a number, or a fraction of all [0.5]
#   --train CONFIG  configuration of the run [imagenet9/rebias]
#   --convert WORD  a further option of 'convert', may be repeated: --convert=--max-corrupt=10
#                   (the merge gets this one too; without it a damaged image stops all stages)
#   --data WORD     an option of sbatch for all stages except the training: --data=--partition=cpu
#   --env FILE      file that a job reads first [env.sh beside this file]
#   --python FILE   the interpreter [python]
#   -- …            options of 'rebias-launch slurm' for the training
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source='' output='' gather='' failed=0.5 parts=8 train=imagenet9/rebias env=$here/env.sh python=python
convert=() merge=() data=() options=()

usage() {
    echo "imagenet9.sh: error: $1 (see the head of $here/imagenet9.sh)" >&2
    exit 2
}

while [ "$#" -gt 0 ]; do
    case "$1" in
        -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        --) shift; options=("$@"); break ;;
        --*=*) flag=${1%%=*} value=${1#*=}; shift ;;
        --*) flag=$1; [ "$#" -gt 1 ] || usage "$1 needs a value"; value=$2; shift 2 ;;
        *) usage "$1: no such argument" ;;
    esac
    case "$flag" in
        --source) source=$value ;;
        --output) output=$value ;;
        --gather) gather=$value ;;
        --max-failed) failed=$value ;;
        --parts) parts=$value ;;
        --train) train=$value ;;
        --convert) convert+=("$value") ;;
        --data) data+=("$value") ;;
        --env) env=$value ;;
        --python) python=$value ;;
        *) usage "$flag: no such argument" ;;
    esac
done
[ -n "$source" ] || usage "--source is missing"
[ -n "$output" ] || usage "--output is missing"
[[ "$parts" =~ ^[1-9][0-9]{0,3}$ ]] || usage "--parts: '$parts' is not a number from 1 to 9999"
[ -f "$env" ] || usage "--env: $env is not a file"
[ -z "$gather" ] || [ -f "$gather" ] || usage "--gather: $gather is not a file"
[ -n "$gather" ] || [ -e "$source" ] || usage "--source: $source does not exist"
for i in "${!convert[@]}"; do
    case "${convert[i]}" in
        --max-corrupt=*) merge+=("${convert[i]}") ;;
        --max-corrupt) merge+=("${convert[@]:i:2}") ;;
    esac
done
command -v sbatch > /dev/null || usage "sbatch: not found; is this a login node of a cluster?"
# The user's own options for sbatch follow a second '--'.
[[ " ${options[*]} " == *' -- '* ]] || options+=(--)
training() {
    "$python" -m launch slurm "$train" --set "data.root=$output" --env "$env" "$@"
}
# Whatever the training refuses, such as more ranks than it has micro-batches, is refused here.
training --dry-run "${options[@]}" > /dev/null
mkdir -p "$output"
output=$(cd "$output" && pwd)
logs=$output-logs
mkdir -p "$logs"

# submit STAGE JOB-BEFORE SBATCH-OPTIONS... -- WORDS...: prints the number of the job
submit() {
    local stage=$1 before=$2 own=() job
    shift 2
    while [ "$1" != -- ]; do own+=("$1"); shift; done
    shift
    [ -z "$before" ] || own+=("--dependency=afterok:$before")
    job=$(sbatch --parsable --kill-on-invalid-dep=yes --job-name="$stage" "${data[@]}" \
        --output="$logs/$stage-%j.out" "${own[@]}" "$here/array.sbatch" "$env" "$python" "$@") \
        || job="exit code $?"
    job=${job%%;*}
    # In this subshell -e has no effect, and without a job number the next stages would start.
    if [[ ! "$job" =~ ^[0-9]+$ ]]; then
        echo "imagenet9.sh: error: $stage: sbatch submitted no job ($job)" >&2
        return 2
    fi
    echo "$stage: job $job" >&2
    echo "$job"
}

job=''
if [ -n "$gather" ]; then
    job=$(submit gather '' -- -m data_shards gather "$gather" --output "$source" --val-fraction 0.05 \
        --max-failed "$failed")
fi
job=$(submit convert "$job" --array="1-$parts" -- -m data_shards convert imagenet9 \
    --source "$source" --output "$output" "${convert[@]}" --part "%i/$parts")
for split in train selection val; do
    job=$(submit "merge-$split" "$job" -- -m data_shards merge "$output" --split "$split" \
        "${merge[@]}")
done
job=$(submit verify "$job" -- -m data_shards verify "$output")
training "${options[@]}" --dependency="afterok:$job" --kill-on-invalid-dep=yes
