#!/usr/bin/env bash
# Real ultrasound at 128 x 128 pixels on two CPU cores: every stage, and what it leaves in results/real_128/.
#
#   bash results/real_128_cpu.sh data/raw runs/real_128      two hours on recent cores (AVX-512)
#
# data/raw holds AUL, BUSI, CAMUS, covid19_ultrasound, DDTI, HC18, MMOTU, STU-Hospital and TimTrack, without the
# share that is kept back: see README.md in this folder, also for the numbers that came out. Stages can be
# named, stopped and gone on with: see stages.sh.
source "$(dirname "$0")/stages.sh"

data=$out/processed vqvae=$out/vqvae/best.pth var=$out/var/ar-ckpt-best.pth sweep=$out/sweep
record=results/real_128
# Real pictures are shown of these alone, whose licences allow that: AUL (CC BY 4.0), DDTI (CC0).
shown=(Liver-Benign Liver-Malignant Liver-Normal Thyroid-Nodule-DDTI)
size=128 views=8 per_class=4 variety=8
box=(40 56 88 104)
vqvae_size=(--ch 32 --patch-nums 1 2 3 4 5 6 8 --vocab-size 1024 --batch-size 8 --steps 6000
    --ema-decay 0.998 --log-every 20 --eval-every 500 --save-every 250
    # As the recorded run had it: SSIM's loss is on by default since then.
    --ssim-weight 0)
var_size=(--depth 6 --width 256 --heads 4 --batch-size 32 --steps 1500 --ema-decay 0.99
    --log-every 20 --eval-every 100 --save-every 100)
judges=(--extractor-steps 400 --classifier-steps 200 --extractor-pixels 128)
evaluation_size=(--images-per-class 16 --likelihood-images 400)
sweep_size=(--images-per-class 12 --cfg 0 1.5 3 5 --top-p 0.95 --top-k 0 --temperature 0.9 1 --prefix-tokens 0 14 55)
if [[ $SMOKE == 1 ]]; then
    record=$out/record size=32 views=2 per_class=1
    box=(8 8 24 24)
    vqvae_size=(--ch 32 --patch-nums 1 2 --vocab-size 32 --batch-size 4 --steps 4 --log-every 2 --eval-every 2)
    var_size=(--depth 1 --width 32 --heads 2 --batch-size 8 --steps 4 --log-every 2 --eval-every 2)
    judges=(--extractor-steps 4 --classifier-steps 4 --extractor-pixels 32)
    evaluation_size=(--images-per-class 4 --likelihood-images 400)
    sweep_size=(--images-per-class 4 --cfg 0 1.5 --top-p 0.95 --top-k 0 --temperature 1 --prefix-tokens 0 1)
fi
models=(--var "$var" --vqvae "$vqvae")

stage held_back - python results/hold_back.py refuse --raw-root "$raw"
stage processed - python data_preprocessing/prepare_datasets.py --raw-root "$raw" --out-root "$data" --size "$size"
stage vqvae - python train_vqvae.py --data-root "$data" --out-dir "$out/vqvae" "${vqvae_size[@]}"
stage reconstructions "$out/reconstructions/quality_by_scale.png" \
    python sample_vqvae.py --data-root "$data" --vqvae "$vqvae" --out-dir "$out/reconstructions" --splits val test
stage tokens - python tokenize_multiscale_maps.py --data-root "$data" --vqvae "$vqvae" --out-dir "$out/tokens" \
    --views "$views"
stage var - python train_var.py --tokens-dir "$out/tokens" --vqvae "$vqvae" --out-dir "$out/var" "${var_size[@]}"
sample_and_evaluate
stage record - python results/record.py --run "$out" --out-dir "$record" --shown "${shown[@]}"
finish
