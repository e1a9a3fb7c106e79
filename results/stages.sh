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

# stage NAME FILE COMMAND...: FILE is what a finished stage leaves, "-" where the script sees by itself that
# nothing is to do. The command goes to commands/NAME.txt, start, seconds and exit code to commands/times.csv.
stage() {
    local name=$1 finished=$2 limit=() code=0
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
    if [[ $PIECE_SECONDS != 0 ]]; then
        # SECONDS counts from the start of the recipe. A script that does not stop in time is killed.
        ((SECONDS < PIECE_SECONDS)) || again "$name"
        limit=(timeout --preserve-status --signal TERM --kill-after 120 "$((PIECE_SECONDS - SECONDS))")
    fi
    mkdir -p "$out/commands"
    printf '%q ' "$@" | sed 's/ $/\n/' >"$out/commands/$name.txt"
    local start=$SECONDS date
    date=$(date -u +%FT%TZ)
    "${limit[@]}" "$@" || code=$?
    echo "$name,$date,$((SECONDS - start)),$code" >>"$out/commands/times.csv"
    if [[ $code == 143 ]]; then again "$name"; fi
    if [[ $code != 0 ]]; then exit "$code"; fi
}

again() {
    echo "piece over in stage $1: give the same command again" >&2
    exit 143
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
