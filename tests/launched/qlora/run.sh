#!/bin/bash
set -e
accelerate launch --config_file fsdp.yaml train.py
