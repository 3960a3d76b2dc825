"""PareCO and four baselines on ImageNet with MobileNetV2: the parent of the ImageNet experiments.

The recipe is that of the authors' command (github.com/enyac-group/Joslim, readme.md); that code
trains in fp32.
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
        weight_decay=4e-5,
        label_smoothing=0.1,
        sampled_per_step=2,
        ask_every_steps=625,  # 1000 widths in 250 epochs of 1251 steps
        precision="fp32",
        channels_last=True,
    ),
    # US-Net calibrates on 5 batches of 1024 (bn_cal_batch_num), the authors' ImageNet script on 2.
    evaluation=EvaluationConfig(calibration_images=5_120, batch_size=256),
    search=SearchConfig(initial_widths=20),
    methods=("pareco", "us_net", "s_net", "random_widths", "two_stage"),
    seeds=(0,),
)

SCALES = {"cpu": on_cpu(image_size=48, train_images=5_000, epochs=4, ask_every_steps=8)}
