#!/bin/sh
# one GPU
accelerate launch -m axolotl.cli.train 10_named.yml --lora-r=8 --output-dir=out/2
