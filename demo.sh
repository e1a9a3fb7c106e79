#!/usr/bin/env bash
# Every stage in order, small enough for two CPU cores: simulated ultrasound of six kinds, 64 x 64 pixels.
#
#   make demo                 sets up .venv and runs this (5 to 25 minutes on two cores after installation)
#   bash demo.sh runs/mine    the same into another folder, with the python on the PATH
#
# Stopped half-way, the same command goes on. The full-size recipe is each script's defaults: leave the flags out.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-demo}

say() { printf '\n== %s\n' "$*"; }

say "1/9 simulate raw pictures from scatterers, beam and attenuation"
python data_preprocessing/simulate_ultrasound.py --out-root "$out/raw/Simulated" --images-per-class 75 \
    --views-per-patient 1 --size 192

say "2/9 crop, letterbox, split by patient"
python data_preprocessing/prepare_datasets.py --raw-root "$out/raw" --out-root "$out/processed" --size 64

say "3/9 train the multi-scale VQ-VAE"
python train_vqvae.py --data-root "$out/processed" --out-dir "$out/vqvae" --ch 32 --vocab-size 512 \
    --patch-nums 1 2 3 4 --batch-size 8 --steps 900 --ema-decay 0.99 --adversarial-weight 0 \
    --log-every 50 --eval-every 300 --save-every 100

say "4/9 how well it rebuilds"
python sample_vqvae.py --data-root "$out/processed" --vqvae "$out/vqvae/best.pth" \
    --out-dir "$out/reconstructions" --splits val test

say "5/9 images to token maps"
python tokenize_multiscale_maps.py --data-root "$out/processed" --vqvae "$out/vqvae/best.pth" \
    --out-dir "$out/tokens" --views 12

say "6/9 train the transformer"
python train_var.py --tokens-dir "$out/tokens" --vqvae "$out/vqvae/best.pth" --out-dir "$out/var" \
    --depth 4 --width 128 --heads 4 --batch-size 32 --steps 500 --ema-decay 0.99 \
    --log-every 25 --eval-every 50 --save-every 100

say "7/9 choose guidance, top-p and temperature on val"
python sweep_var.py --data-root "$out/processed" --var "$out/var/ar-ckpt-best.pth" \
    --vqvae "$out/vqvae/best.pth" --tokens-dir "$out/tokens" --out-dir "$out/sweep" --images-per-class 12 \
    --cfg 0 1.5 3 --top-p 0 0.95 --top-k 0 --temperature 0.9 1 1.1 --prefix-tokens 0 5 14 \
    --extractor-steps 150 --classifier-steps 60 --extractor-pixels 64

say "8/9 generate: K rising, with and without a real prefix; edit: a part of a real picture anew"
python sample_var.py --var "$out/var/ar-ckpt-best.pth" --vqvae "$out/vqvae/best.pth" --tokens-dir "$out/tokens" \
    --data-root "$out/processed" --out-dir "$out/samples" --images-per-class 6 \
    --settings-from "$out/sweep/chosen.json"
image=$(find "$out/processed/val/Breast-Benign" -name '*.png' | sort | head -n 1)
python edit_var.py --var "$out/var/ar-ckpt-best.pth" --vqvae "$out/vqvae/best.pth" --image "$image" \
    --class-name Breast-Malignant --box 12 8 52 48 --out-dir "$out/edits" \
    --settings-from "$out/sweep/chosen.json"

say "9/9 evaluate on test: good, varied, useful, copied?"
python evaluate_var.py --data-root "$out/processed" --var "$out/var/ar-ckpt-best.pth" \
    --vqvae "$out/vqvae/best.pth" --tokens-dir "$out/tokens" --out-dir "$out/evaluation" \
    --images-per-class 16 --settings-from "$out/sweep/chosen.json" --judges "$out/sweep/judges.pth"

cat <<END

Done. Look at:
  $out/processed/contact_sheets/    what was cropped, and how
  $out/vqvae/reconstructions.png    what the VQ-VAE keeps of a picture
  $out/samples/sweep_tp.png         generated from the first K tokens of a real picture, K rising
  $out/samples/sweep_nop.png        the same from class frequencies alone
  $out/samples/variety_Heart.png    sixteen hearts made from nothing but the class
  $out/var/loss_curves.png          what the transformer learned beyond frequencies
  $out/sweep/sweep.png              what guidance, top-p and temperature change, and what a prefix brings
  $out/evaluation/report.html       how good that is, in numbers
END
