#!/usr/bin/env bash
# Real ultrasound at full size (256 x 256, ten scales, vocabulary 2,048) on one GPU, and its speed.
#
#   bash results/real_256_gpu.sh data/raw runs/real_256                    where the raw pictures are
#   bash results/real_256_gpu.sh runs/prepared.zip runs/real_256           where only their archive is
#   PIECE_SECONDS=540 bash results/real_256_gpu.sh runs/prepared.zip runs/real_256 vqvae      a short loan
#
# Not run yet: no GPU was to be had. VQVAE_STEPS and VAR_STEPS set how long is trained; the rates decay to the
# end, so choose them before the first step, as README.md in this folder says, and keep them: a run goes on only
# with the same. COMPILE=True trains with torch.compile: minutes at the start, then faster, see speed_compiled.
# Stages can be named, stopped and gone on with: see stages.sh. README.md says how to split them over loans.
# NO_GPU=1 lets stages run where torch sees no GPU, such as the evaluation of weights that were brought back.
source "$(dirname "$0")/stages.sh"

# Else a driver that is too old for torch would show after hours of training on the CPU.
if [[ $SMOKE$DRY${NO_GPU:-0} == 000 ]]; then
    python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "torch sees no GPU, wanted one: mend driver or torch, or give NO_GPU=1 to go on without" >&2
        exit 2
    }
fi

data=$out/processed sweep=$out/sweep
# Weights rounded to bfloat16: those that come back from the machine, so all that follows stands on them.
vqvae=$out/vqvae/rounded.pth var=$out/var/rounded.pth var_deep=$out/var_deep/rounded.pth
record=results/real_256
# Checkout of the published VAR package, to measure beside; none: only our own fast paths.
published=(${PUBLISHED:+--published "$PUBLISHED"}) beside=${PUBLISHED:+_published}
# Real pictures are shown of these alone, whose licences allow that: AUL (CC BY 4.0), DDTI (CC0).
shown=(Liver-Benign Liver-Malignant Liver-Normal Thyroid-Nodule-DDTI)
views=8 per_class=8 variety=16
size=256 box=(80 112 176 208)
vqvae_size=(--batch-size 32 --steps "${VQVAE_STEPS:-6000}" --eval-every 1000 --save-every 500
    --compile "${COMPILE:-False}")
var_size=(--batch-size 64 --steps "${VAR_STEPS:-10000}" --eval-every 1000 --save-every 500
    --compile "${COMPILE:-False}")
deep=(--depth 12)
recipes=(--rows all --ch 64 --vocab-size 2048 --batch-size 32 --steps "${RECIPE_STEPS:-3000}")
judges=(--extractor-steps 1500 --classifier-steps 1000)
evaluation_size=(--images-per-class 50)
sweep_size=(--images-per-class 20 --cfg 0 1 1.5 2 3 --top-p 0 0.9 0.95 0.99 --top-k 0 300 --temperature 0.9 1 1.1)
speed=(--device cuda --dtype bfloat16 --batch 64)
vqvae_speed=(--device cuda)
# By themselves: where compiling fails, the other rows are not lost.
vqvae_compiled=(--rows compiled "network as train_vqvae.py, compiled")
# The card's rate is nearer with a larger transformer, and after compiling.
larger=(--depth 16 --width 1024) compiled=(--compile True)
drawn=()
matrices=()
shard=()
if [[ $SMOKE == 1 ]]; then
    record=$out/record views=2 per_class=1 variety=2
    size=32 box=(8 8 24 24)
    vqvae_size=(--ch 32 --patch-nums 1 2 --vocab-size 32 --batch-size 4 --steps 4 --log-every 2 --eval-every 2)
    var_size=(--width 32 --heads 2 --batch-size 8 --steps 4 --log-every 2 --eval-every 2)
    deep=(--depth 2)
    recipes=(--rows predecessor ours --ch 32 --vocab-size 32 --batch-size 4 --steps 4)
    judges=(--extractor-steps 4 --classifier-steps 4 --extractor-pixels 32)
    evaluation_size=(--images-per-class 4)
    sweep_size=(--images-per-class 4 --cfg 0 1.5 --top-p 0.95 --top-k 0 --temperature 1 --prefix-tokens 0 1)
    larger=(--depth 3) compiled=()
    speed=(--repeats 1 --batch 2 --width 64 --depth 2 --vqvae-width 32 --vocab-size 64 --patch-nums 1 2 3)
    vqvae_speed=(--rows "batch in 2 pieces" "data as train_vqvae.py" --repeats 1 --steps 1 --batch-size 2)
    vqvae_speed+=(--ch 32 --vocab-size 32 --patch-nums 1 2)
    vqvae_compiled=()
    drawn=(--top-k 20)
    matrices=(--vqvae-batch 1 --matrix-side 64)
    shard=(--most-mb 1)
fi
models=(--var "$var" --vqvae "$vqvae")

if [[ $raw == *.zip ]]; then
    stage processed "$data/packed.json" python results/pack.py unpack "$raw" "$data"
else
    stage held_back - python results/hold_back.py refuse --raw-root "$raw"
    stage processed - python data_preprocessing/prepare_datasets.py --raw-root "$raw" --out-root "$data" \
        --size "$size"
    stage archive "$out/prepared.zip" python results/pack.py images "$data" "$out/prepared.zip"
fi
MAY_FAIL=1 stage sampling_speed "$out/speed/sampling$beside.png" python benchmarks/sampling.py --out-dir "$out/speed" \
    "${speed[@]}" "${drawn[@]}" "${published[@]}"
MAY_FAIL=1 stage training_speed "$out/speed/training$beside.png" python benchmarks/training.py --out-dir "$out/speed" \
    "${speed[@]}" "${published[@]}"
MAY_FAIL=1 stage vqvae_speed "$out/speed/vqvae_training.json" python benchmarks/vqvae_training.py \
    --out-dir "$out/speed" "${vqvae_speed[@]}"
MAY_FAIL=1 stage vqvae_speed_adversarial "$out/speed_adversarial/vqvae_training.json" \
    python benchmarks/vqvae_training.py --out-dir "$out/speed_adversarial" "${vqvae_speed[@]}" --adversarial True
MAY_FAIL=1 stage matrix_rate "$out/speed/matrix_rate.json" python benchmarks/matrix_rate.py --out-dir "$out/speed" \
    "${speed[@]}" "${matrices[@]}"
MAY_FAIL=1 stage matrix_rate_larger "$out/speed_larger/matrix_rate.json" python benchmarks/matrix_rate.py \
    --out-dir "$out/speed_larger" "${speed[@]}" "${matrices[@]}" "${larger[@]}"
MAY_FAIL=1 stage matrix_rate_compiled "$out/speed_compiled/matrix_rate.json" python benchmarks/matrix_rate.py \
    --out-dir "$out/speed_compiled" "${speed[@]}" "${matrices[@]}" "${compiled[@]}"
MAY_FAIL=1 stage sampling_speed_compiled "$out/speed_compiled/sampling.png" python benchmarks/sampling.py \
    --out-dir "$out/speed_compiled" "${speed[@]}" "${drawn[@]}" "${compiled[@]}"
MAY_FAIL=1 stage training_speed_compiled "$out/speed_compiled/training.png" python benchmarks/training.py \
    --out-dir "$out/speed_compiled" "${speed[@]}" "${compiled[@]}"
MAY_FAIL=1 stage vqvae_speed_compiled "$out/speed_compiled/vqvae_training.json" \
    python benchmarks/vqvae_training.py --out-dir "$out/speed_compiled" "${vqvae_speed[@]}" "${compiled[@]}" \
    "${vqvae_compiled[@]}"
stage vqvae - python train_vqvae.py --data-root "$data" --out-dir "$out/vqvae" "${vqvae_size[@]}"
stage vqvae_shards "$out/weights/vqvae/index.json" python results/pack.py shard "$out/vqvae/best.pth" \
    "$out/weights/vqvae" "${shard[@]}"
stage vqvae_join "$vqvae" python results/pack.py join "$out/weights/vqvae" "$vqvae"
stage reconstructions "$out/reconstructions/quality_by_scale.png" \
    python sample_vqvae.py --data-root "$data" --vqvae "$vqvae" --out-dir "$out/reconstructions"
stage tokens - python tokenize_multiscale_maps.py --data-root "$data" --vqvae "$vqvae" --out-dir "$out/tokens" \
    --views "$views"
stage var - python train_var.py --tokens-dir "$out/tokens" --vqvae "$vqvae" --out-dir "$out/var" "${var_size[@]}"
stage var_shards "$out/weights/var/index.json" python results/pack.py shard "$out/var/ar-ckpt-best.pth" \
    "$out/weights/var" "${shard[@]}"
stage var_join "$var" python results/pack.py join "$out/weights/var" "$var"
sample_and_evaluate
stage var_deep - python train_var.py --tokens-dir "$out/tokens" --vqvae "$vqvae" --out-dir "$out/var_deep" \
    "${var_size[@]}" "${deep[@]}"
stage var_deep_shards "$out/weights/var_deep/index.json" python results/pack.py shard \
    "$out/var_deep/ar-ckpt-best.pth" "$out/weights/var_deep" "${shard[@]}"
stage var_deep_join "$var_deep" python results/pack.py join "$out/weights/var_deep" "$var_deep"
# Beside the smaller one: the same judges, its own settings.
deeper=(--data-root "$data" --var "$var_deep" --vqvae "$vqvae" --tokens-dir "$out/tokens")
deeper+=(--judges "$sweep/judges.pth" "${judges[@]}")
stage sweep_deep "$out/sweep_deep/chosen.json" python sweep_var.py "${deeper[@]}" --out-dir "$out/sweep_deep" \
    "${sweep_size[@]}"
stage evaluation_deep "$out/evaluation_deep/report.html" python evaluate_var.py "${deeper[@]}" \
    --out-dir "$out/evaluation_deep" --settings-from "$out/sweep_deep/chosen.json" "${evaluation_size[@]}"
# It ends with code 1 when ours is worse than the predecessor's in one measure: a result, and written down.
MAY_FAIL=1 RESUMES=1 stage recipes - python benchmarks/vqvae_recipes.py --data-root "$data" \
    --out-dir "$out/recipes" "${recipes[@]}"
stage record - python results/record.py --run "$out" --out-dir "$record" --shown "${shown[@]}"
finish
