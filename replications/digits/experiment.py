"""All methods on scikit-learn's digits with a small VGG-11: two CPU cores, minutes.

Nobody has published a recipe for these images. From the paper's are label smoothing 0.1, weight
decay 5e-4 (CIFAR), multipliers from 0.42 and two networks sampled in a step; ours is all else: 40
epochs of batches of 128 with one epoch of warm-up, rate 0.4 for 256 images (0.2), Nesterov's
momentum 0.9, new widths every 14 steps, crops from one pixel of padding, 300 held-out images for
the search, 512 to re-calibrate on. Chosen by the losses on held-out images with seeds 10 to 12.
"""

from dataclasses import replace

from pareco.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    NetworkConfig,
    TrainingConfig,
)
from replications import scales

EXPERIMENT = Experiment(
    name="digits",
    network=NetworkConfig(name="cifar_vgg11", base_width=6),
    data=DataConfig(
        name="digits",
        image_size=8,
        mean=(73.0,),
        std=(90.0,),
        search_split="holdout",
        search_images=300,
        test_images=597,
        crop_padding=1,
        crop_padding_mode="replicate",
    ),
    training=TrainingConfig(
        epochs=40,
        batch_size=128,
        lr_per_256=0.4,
        warmup_epochs=1,
        weight_decay=5e-4,
        label_smoothing=0.1,
        ask_every_steps=14,
    ),
    evaluation=EvaluationConfig(calibration_images=512, batch_size=256),
    methods=(
        "pareco",
        "pareco_exact",
        "autoslim",
        "independent",
        "random_widths",
        "s_net",
        "two_stage",
        "us_net",
    ),
    seeds=(0, 1, 2, 3, 4),
    reference_methods=("autoslim", "independent", "random_widths", "two_stage"),
)


def _short(experiment: Experiment) -> Experiment:
    return replace(scales.short(experiment), scale="short: 1/10 of the epochs")


SCALES = {
    "short": _short,
    "cpu": scales.on_cpu(
        image_size=8,
        train_images=900,
        epochs=20,
        ask_every_steps=14,
        search_images=300,
        test_images=597,
    ),
}
