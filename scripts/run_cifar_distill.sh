#!/bin/sh
# The published command lines of the CIFAR-100 benchmark, to be copied one by one: each trains for 240 epochs.
# Run as it is, this file works through all of them, one after the other, and stops at the first that fails.
# Teachers: sh scripts/fetch_pretrained_teachers.sh, or python train_teacher.py --model NAME.
set -eu

# ITRD, teacher and student of the same architecture
python train_student.py --path_t ./save/models/wrn_40_2_vanilla/ckpt_epoch_240.pth --model_s wrn_16_2 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.01 --trial 1
python train_student.py --path_t ./save/models/wrn_40_2_vanilla/ckpt_epoch_240.pth --model_s wrn_40_1 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.01 --trial 1
python train_student.py --path_t ./save/models/resnet56_vanilla/ckpt_epoch_240.pth --model_s resnet20 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.01 --trial 1
python train_student.py --path_t ./save/models/resnet110_vanilla/ckpt_epoch_240.pth --model_s resnet20 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.01 --trial 1
python train_student.py --path_t ./save/models/resnet110_vanilla/ckpt_epoch_240.pth --model_s resnet32 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.01 --trial 1
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --model_s resnet8x4 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.01 --trial 1
python train_student.py --path_t ./save/models/vgg13_vanilla/ckpt_epoch_240.pth --model_s vgg8 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.01 --trial 1

# ITRD, different architectures
python train_student.py --path_t ./save/models/vgg13_vanilla/ckpt_epoch_240.pth --model_s MobileNetV2 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.5 --trial 1
python train_student.py --path_t ./save/models/ResNet50_vanilla/ckpt_epoch_240.pth --model_s MobileNetV2 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.5 --trial 1
python train_student.py --path_t ./save/models/ResNet50_vanilla/ckpt_epoch_240.pth --model_s vgg8 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.5 --trial 1
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --model_s ShuffleV1 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.5 --trial 1
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --model_s ShuffleV2 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.5 --trial 1
python train_student.py --path_t ./save/models/wrn_40_2_vanilla/ckpt_epoch_240.pth --model_s ShuffleV1 -r 1.0 -b 1.0 --lambda_corr 2.0 --lambda_mutual 1.0 --alpha_it 1.5 --trial 1

# The other methods, for one pair; the same weights are used for all pairs
# KD
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill kd --model_s resnet8x4 -r 0.1 -a 0.9 -b 0 --trial 1
# FitNet
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill hint --model_s resnet8x4 -a 0 -b 100 --trial 1
# AT
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill attention --model_s resnet8x4 -a 0 -b 1000 --trial 1
# SP
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill similarity --model_s resnet8x4 -a 0 -b 3000 --trial 1
# CC
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill correlation --model_s resnet8x4 -a 0 -b 0.02 --trial 1
# VID
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill vid --model_s resnet8x4 -a 0 -b 1 --trial 1
# RKD
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill rkd --model_s resnet8x4 -a 0 -b 1 --trial 1
# PKT
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill pkt --model_s resnet8x4 -a 0 -b 30000 --trial 1
# AB
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill abound --model_s resnet8x4 -a 0 -b 1 --trial 1
# FT
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill factor --model_s resnet8x4 -a 0 -b 200 --trial 1
# FSP
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill fsp --model_s resnet8x4 -a 0 -b 50 --trial 1
# NST
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill nst --model_s resnet8x4 -a 0 -b 50 --trial 1
# CRD
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill crd --model_s resnet8x4 -a 0 -b 0.8 --trial 1
# CRD+KD
python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill crd --model_s resnet8x4 -a 1 -b 0.8 --trial 1
