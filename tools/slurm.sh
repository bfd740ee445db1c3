#!/usr/bin/env bash
#SBATCH --job-name=attn
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#
# A Slurm job array: each task runs a range of the lines of a file, and the last to finish joins the
# parts. It may be submitted again at any time, with the same array: what is done is not done again.
#
#   sbatch --array=0-15 tools/slurm.sh model.gguf in.jsonl out.jsonl -s 1 -n 100
#
# What follows the output's name are flags of ./run; RUN=PATH in the environment names another
# program. Without -s every task draws a seed of its own. The parts are in out.jsonl.parts, which
# may be removed when out.jsonl is there; that appears complete, and is the file of a single run.
# The exit status is that of `run`: 1 also where lines have failed.
set -euo pipefail

fail() {
    echo "slurm.sh: $1" >&2
    exit 2
}

[ $# -ge 3 ] || fail "want a model, an input, an output, and then flags of run"
model=$1 input=$2 output=$3
shift 3
task=${SLURM_ARRAY_TASK_ID:?"want a job array: sbatch --array=0-15 tools/slurm.sh ..."}
n_tasks=${SLURM_ARRAY_TASK_COUNT:?}
if [ "${SLURM_ARRAY_TASK_MIN:?}" != 0 ] || [ "${SLURM_ARRAY_TASK_MAX:?}" != $((n_tasks - 1)) ]; then
    fail "--array: got $n_tasks tasks up to number $SLURM_ARRAY_TASK_MAX, want all of them from 0 on"
fi

n_lines=$(awk 'END { print NR }' "$input")
folder=$output.parts

# What task $1 begins before: the lines of the tasks before it.
before() { echo $((n_lines * $1 / n_tasks)); }
part() { printf '%s/%05d.jsonl' "$folder" "$1"; }

mkdir -p "$folder"
if [ ! -e "$folder/tasks" ]; then
    echo "$n_tasks" > "$folder/tasks.$task"
    mv "$folder/tasks.$task" "$folder/tasks" # whole from the first moment, whoever looks
fi
[ "$(< "$folder/tasks")" = "$n_tasks" ] ||
    fail "$folder is of an array of $(< "$folder/tasks") tasks, got $n_tasks; give as many, or remove it"

# ---- this task's lines ---------------------------------------------------------------------------

from=$(before "$task") to=$(before $((task + 1)))
mine=$(part "$task")
status=0
if [ "$from" = "$to" ]; then
    : > "$mine"
else
    sed -n "$((from + 1)),${to}p;${to}q" "$input" |
        "${RUN:-./run}" "$model" -t "${SLURM_CPUS_PER_TASK:-1}" "$@" --jsonl - -o "$mine" --resume \
            --first-line $((from + 1)) || status=$?
fi
[ $status -le 1 ] || exit $status

# ---- the whole, where all tasks are done ---------------------------------------------------------

parts=()
for ((i = 0; i < n_tasks; i++)); do
    want=$(($(before $((i + 1))) - $(before $i)))
    [ -e "$(part $i)" ] && [ "$(wc -l < "$(part $i)")" = $want ] || exit $status
    parts+=("$(part $i)")
done
# Two tasks may come here at once; each then writes the same file.
cat "${parts[@]}" > "$folder/joined.$task"
mv "$folder/joined.$task" "$output"
exit $status
