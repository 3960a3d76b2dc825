"""PareCO and four baselines on CIFAR-10 with ResNet-20: the parent of the CIFAR experiments.

The recipe is that of the authors' command for CIFAR-100 (github.com/enyac-group/Joslim, readme.md),
at the paper's 200 epochs.
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
    name="cifar10_resnet20",
    network=NetworkConfig(name="cifar_resnet20", base_width=16, alpha_min=0.42),
    data=DataConfig(
        name="cifar10",
        image_size=32,
        mean=(125.3, 123.0, 113.9),
        std=(63.0, 62.1, 66.7),
        in_memory=True,
        search_split="batch",
        search_images=5_000,
        crop_padding=4,
        crop_padding_mode="constant",
        flip=True,
    ),
    training=TrainingConfig(
        epochs=200,
        batch_size=128,
        lr_per_256=0.2,  # 0.1 for a batch of 128
        warmup_epochs=5,
        momentum=0.9,
        weight_decay=5e-4,
        label_smoothing=0.1,
        sampled_per_step=2,
        ask_every_steps=156,  # 1000 widths in 200 epochs of 390 steps
        precision="fp32",
    ),
    # As US-Net on ImageNet; the authors' CIFAR script takes the whole training split.
    evaluation=EvaluationConfig(calibration_images=5_120, batch_size=256),
    search=SearchConfig(initial_widths=20),
    methods=("pareco", "us_net", "s_net", "random_widths", "two_stage"),
    seeds=(0, 1, 2),
)

SCALES = {"cpu": on_cpu(image_size=16, train_images=10_000, epochs=4, ask_every_steps=16)}
