NPROC=4
torchrun --standalone --nproc_per_node=$NPROC \
    train.py
