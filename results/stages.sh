# Sourced by the recipes of this folder: which stages run, how long a piece may take, what is written down.
#
# A recipe is called with the raw folder, the run folder and, if not all are wanted, the names of stages:
#   bash results/real_128_cpu.sh data/raw runs/real_128 vqvae tokens
#
# PIECE_SECONDS=540   stops what runs after so many seconds; exit code 143 says: give the same command again
# SMOKE=1             a few steps on a few small pictures, to try the commands
# DRY=1               only prints the commands
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

raw=${1:?"usage: bash ${0##*/} RAW_FOLDER RUN_FOLDER [STAGE ...]"}
out=${2:?"usage: bash ${0##*/} RAW_FOLDER RUN_FOLDER [STAGE ...]"}
shift 2
wanted=("$@")
known=()
PIECE_SECONDS=${PIECE_SECONDS:-0}
SMOKE=${SMOKE:-0}
DRY=${DRY:-0}
MAY_FAIL=0
RESUMES=0

# stage NAME FILE COMMAND...: FILE is the last that a finished stage writes, "-" where the script sees by itself
# that nothing is to do. MAY_FAIL=1 before it: what comes after does not need it; with RESUMES=1 it goes on where it
# was stopped, so that no piece is too short for it. The command goes to commands/NAME.txt, what it prints to
# commands/NAME.log as well, start, seconds and exit code to commands/times.csv.
stage() {
    local name=$1 finished=$2 given_up=$out/commands/$1.given_up limit=() code=0
    shift 2
    known+=("$name")
    [[ ${#wanted[@]} == 0 || " ${wanted[*]} " == *" $name "* ]] || return 0
    if [[ $DRY == 1 ]]; then
        printf '%q ' "$@"
        printf '\n'
        return 0
    fi
    printf '\n== %s\n' "$name"
    if [[ $finished != - && -e $finished ]]; then
        echo "nothing to do: $finished is there"
        return 0
    fi
    if [[ -e $given_up ]]; then
        echo "left out: a whole piece was too short for it; to try again, remove $given_up"
        return 0
    fi
    if [[ $PIECE_SECONDS != 0 ]]; then
        # SECONDS counts from the start of the recipe. A script that does not stop in time is killed.
        ((SECONDS < PIECE_SECONDS)) || again "$name"
        limit=(timeout --preserve-status --signal TERM --kill-after 45 "$((PIECE_SECONDS - SECONDS))")
    fi
    mkdir -p "$out/commands"
    local start=$SECONDS date log=$out/commands/$name.log text=$out/commands/$name.txt before
    date=$(date -u +%FT%TZ)
    touch "$log"
    before=$(wc -c <"$log")
    # Ctrl-C is for the script: its last words still have to be written down.
    "${limit[@]}" "$@" 2>&1 | tee -ia "$log" || code=$?
    # A finished stage that is started again is on record already. (prepare_datasets.py says two lines more.)
    if [[ $code == 0 && -e $text && $(tail -c "+$((before + 1))" "$log" | tail -n 3) == *"nothing to do"* ]]; then
        truncate -s "$before" "$log"
        return 0
    fi
    printf '%q ' "$@" | sed 's/ $/\n/' >"$text"
    echo "$name,$date,$((SECONDS - start)),$code" >>"$out/commands/times.csv"
    # 137 when the time is over: killed, for it did not stop in time, as while torch.compile is at work.
    if [[ $code == 143 || ($code == 137 && $PIECE_SECONDS != 0 && $SECONDS -ge $PIECE_SECONDS) ]]; then
        # A measurement that a whole piece is too short for would fill every piece and hold up what comes after.
        [[ $PIECE_SECONDS == 0 || $MAY_FAIL == 0 || $RESUMES == 1 || $start -ge 30 ]] || touch "$given_up"
        again "$name"
    fi
    if [[ $code != 0 && $MAY_FAIL == 1 ]]; then
        echo "stage $name ended with code $code; the others go on" >&2
    elif [[ $code != 0 ]]; then
        exit "$code"
    fi
}

again() {
    echo "piece over in stage $1: give the same command again" >&2
    exit 143
}

# The first picture of a class in val.
first_of() {
    { find "$data/val/$1" -name '*.png' 2>/dev/null || true; } | sort | head -n 1
}

# What follows the training, from the sampling's settings to the evaluation; sizes and the classes that may be
# shown are variables of the recipe.
sample_and_evaluate() {
    stage sweep "$sweep/chosen.json" python sweep_var.py --data-root "$data" "${models[@]}" --tokens-dir "$out/tokens" \
        --out-dir "$sweep" "${sweep_size[@]}" "${judges[@]}"
    stage samples - python sample_var.py "${models[@]}" --tokens-dir "$out/tokens" --data-root "$data" \
        --out-dir "$out/samples" --settings-from "$sweep/chosen.json" --classes "${shown[@]}" \
        --images-per-class "$per_class" --variety 0
    stage variety - python sample_var.py "${models[@]}" --tokens-dir "$out/tokens" --out-dir "$out/variety" \
        --settings-from "$sweep/chosen.json" --modes plain --images-per-class "$per_class" --variety "$variety"
    # In-painting: a healthy liver, and in the box what the transformer takes for a tumour. Out-painting: what may
    # lie around the middle of a thyroid with a nodule.
    stage edits "$out/edits/edit.json" python edit_var.py "${models[@]}" --image "$(first_of Liver-Normal)" \
        --class-name Liver-Malignant --box "${box[@]}" --settings-from "$sweep/chosen.json" --out-dir "$out/edits" \
        --variants 4
    stage edits_outside "$out/edits_outside/edit.json" python edit_var.py "${models[@]}" \
        --image "$(first_of Thyroid-Nodule-DDTI)" --class-name Thyroid-Nodule-DDTI --box "${box[@]}" --outside True \
        --settings-from "$sweep/chosen.json" --out-dir "$out/edits_outside" --variants 4
    stage evaluation "$out/evaluation/report.html" python evaluate_var.py --data-root "$data" "${models[@]}" \
        --tokens-dir "$out/tokens" --out-dir "$out/evaluation" --settings-from "$sweep/chosen.json" \
        --judges "$sweep/judges.pth" "${evaluation_size[@]}" "${judges[@]}"
}

# Called last: a name that no stage has is a slip of the pen, and nothing would have run.
finish() {
    local name
    for name in "${wanted[@]}"; do
        if [[ " ${known[*]} " != *" $name "* ]]; then
            echo "error: no stage is called $name, known are ${known[*]}" >&2
            exit 2
        fi
    done
}
