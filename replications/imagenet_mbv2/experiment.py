"""PareCO and four baselines on ImageNet with MobileNetV2: the parent of the ImageNet experiments.

Where each number comes from ("code": the command for MobileNetV2 in the authors' readme.md, and
what joslim.py and utils/drivers.py do with it, github.com/enyac-group/Joslim):

- schedule, code: 250 epochs, 5 of them warm-up, then linear decay to zero; batch 1024; rate 0.125
  for 256 images, so 0.5; fp32. (Its warm-up begins at a rate of zero, ours one step later.)
- optimizer, code: momentum 0.9 without Nesterov, weight decay 4e-5 on all but batch norm and
  biases, label smoothing 0.1 (a default), batch norm by each of 8 processes.
- images, code: 224 x 224, ImageNet's mean and deviation, crops of at least 0.25 of the image,
  flips, jitter 0.4, lighting 0.1; tested on the central 224 of 256 pixels (0.875).
- widths, code: multipliers from 0.42; two sampled in a step; new ones every 625 steps, by its
  formula for the paper's 1000; 20 uniform ones first.
- search, code: beta 0.1, b = -3, 50 targets, 10 trials to within 0.02. Ours: 1024 raw samples, 4
  starts of at most 30 iterations (code: 1000, 5, BoTorch's own limit).
- losses of the search, paper: on the current training batch (code: on a batch of test images).
- ours: the front chosen on 10,000 images; batch norm re-calibrated on 5,120, as US-Net's 5 batches
  of 1024 (code: 2 batches); one seed; `channels_last`, which is about speed.
"""

from pareco.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    NetworkConfig,
    SearchConfig,
    TrainingConfig,
)
from replications.scales import on_cpu

EXPERIMENT = Experiment(
    name="imagenet_mbv2",
    network=NetworkConfig(name="mobilenetv2_100", alpha_min=0.42),
    data=DataConfig(
        name="imagenet",
        image_size=224,
        in_memory=False,
        search_split="batch",
        search_images=10_000,
        central_crop=0.875,
        crop_scale=0.25,
        colour_jitter=0.4,
        flip=True,
        lighting=0.1,
    ),
    training=TrainingConfig(
        epochs=250,
        batch_size=1024,
        lr_per_256=0.125,
        warmup_epochs=5,
        momentum=0.9,
        nesterov=False,
        weight_decay=4e-5,
        label_smoothing=0.1,
        sampled_per_step=2,
        ask_every_steps=625,  # 1000 widths in 250 epochs of 1251 steps
        precision="fp32",
        channels_last=True,
        sync_batch_norm=False,
    ),
    evaluation=EvaluationConfig(calibration_images=5_120, batch_size=256),
    search=SearchConfig(initial_widths=20),
    methods=("pareco", "us_net", "s_net", "random_widths", "two_stage"),
    seeds=(0,),
)

SCALES = {"cpu": on_cpu(image_size=48, train_images=5_000, epochs=4, ask_every_steps=16)}
