#!/bin/sh
# The smoke track: every step of the road on the whole of CIFAR-100, on a schedule short enough for two CPU
# cores. Its accuracies say that things work, not how methods compare after 240 epochs.
#
#   sh scripts/smoke_cifar100.sh [METHOD ...]      default: none kd itrd
#
# Teacher resnet20, 15 epochs; student resnet8, 12 epochs, seeds 0 and 1. Runs go to runs/smoke, their
# records to results/smoke. A run that is already there is continued or skipped.
set -eu
itrd=${ITRD:-itrd}
runs=runs/smoke
records=results/smoke
mkdir -p "$records"
[ $# -gt 0 ] || set -- none kd itrd

# $1: name of the run; the rest: the command
run() {
    name=$1
    shift
    if [ ! -f "$records/$name.json" ]; then
        resume=
        [ ! -d "$runs/$name" ] || resume=--resume
        "$itrd" "$@" --data cifar100 --precision bf16 --out "$runs/$name" $resume
        cp "$runs/$name/result.json" "$records/$name.json"
    fi
}

run teacher-resnet20 train --model resnet20 --epochs 15
for seed in 0 1; do
    for method in "$@"; do
        if [ "$method" = none ]; then
            run "resnet8-none-seed$seed" train --model resnet8 --epochs 12 --seed $seed
        else
            run "resnet8-$method-seed$seed" distill --teacher "$runs/teacher-resnet20" --student resnet8 \
                --method "$method" --epochs 12 --seed $seed
        fi
    done
done
