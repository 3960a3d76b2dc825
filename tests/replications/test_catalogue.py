"""The registry of experiments and scales, and every configuration that is shipped."""

from dataclasses import replace

import pytest

from pareco.config import Experiment
from replications.catalogue import experiment_named, experiment_names, name_at, scales_of
from replications.scales import fast, on_cpu, short, smoke
from tests.experiments import TINY

FIVE = {"pareco", "us_net", "s_net", "random_widths", "two_stage"}
IMAGENET = ("imagenet_mbv2", "imagenet_mbv2_memory", "imagenet_mbv3", "imagenet_resnet18")
MBV2 = experiment_named("imagenet_mbv2")
CIFAR = [f"cifar{classes}_resnet{depth}" for classes in (10, 100) for depth in (20, 32, 44, 56)]
PUBLISHED = ["digits", *IMAGENET, *CIFAR]
OURS = ["cifar10_convnext", "cifar10_mbv2", "cifar10_mbv3", "cifar10_vgg", "digits_latency"]


def test_the_experiments() -> None:
    assert set(experiment_names()) == {"own", *PUBLISHED, *OURS}


@pytest.mark.parametrize("name", [*PUBLISHED, *OURS])
def test_every_experiment_has_five_scales_that_say_so_and_keep_what_is_compared(name: str) -> None:
    assert list(scales_of(name)) == ["paper", "fast", "short", "smoke", "cpu"]
    published = experiment_named(name)
    assert set(published.methods) >= FIVE or name in OURS
    for scale in ("short", "smoke", "cpu"):
        experiment = experiment_named(name, scale)
        assert experiment.name == name_at(name, scale) == f"{name}-{scale}"
        assert experiment.scale.startswith(f"{scale}: ")
        for kept in ("methods", "cost"):
            assert getattr(experiment, kept) == getattr(published, kept)
        narrower = "of the channels" in experiment.scale
        width = experiment.network.base_width if narrower else published.network.base_width
        assert experiment.network == replace(published.network, base_width=width)
    assert (published.name, published.scale) == (name, "paper")


@pytest.mark.parametrize("name", experiment_names())
@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_small_scales_leave_room_for_every_split(name: str, scale: str) -> None:
    experiment = experiment_named(name, scale)
    data, calibrated = experiment.data, experiment.evaluation.calibration_images
    assert data.train_images is not None
    assert data.test_images is not None
    assert max(calibrated, experiment.training.batch_size) <= data.train_images
    assert data.search_split == "holdout"
    if data.name.startswith("digits"):
        assert data.train_images + data.test_images + data.search_images <= 1797
    if data.name.startswith("cifar"):
        assert data.train_images + data.search_images <= 50_000


@pytest.mark.parametrize("name", experiment_names())
def test_all_scales_but_the_papers_search_on_held_out_images_and_say_so(name: str) -> None:
    published = experiment_named(name)
    for scale in ("short", "cpu"):
        experiment = experiment_named(name, scale)
        assert experiment.data.search_split == "holdout"
        says = experiment.scale.endswith(", searched on held-out images")
        assert says is (published.data.search_split == "batch")


def widths_visited(experiment: Experiment, images: int) -> float:
    """Return (images / batch size) x epochs / tau x M: the formula of the authors' readme."""
    training = experiment.training
    steps = images // training.batch_size * training.epochs
    return steps / training.ask_every_steps * training.sampled_per_step


@pytest.mark.parametrize(
    ("name", "images"),
    [*((name, 1_281_167) for name in IMAGENET), *((name, 50_000) for name in CIFAR)],
)
@pytest.mark.parametrize("scale", ["paper", "short"])
def test_about_1000_widths_are_visited(name: str, images: int, scale: str) -> None:
    """Of CIFAR's images short holds a tenth out, and so visits fewer than the root of them."""
    experiment = experiment_named(name, scale)
    held_out = experiment.data.search_images if scale == "short" else 0
    close = 0.13 if held_out == 5_000 else 0.03
    # a tenth of the epochs keeps the search's share with the square root of as many visits
    expected = 1000 * (0.1**0.5 if scale == "short" else 1)
    assert widths_visited(experiment, images - held_out) == pytest.approx(expected, rel=close)


def test_the_recipes_differ_where_the_paper_says_so() -> None:
    mbv2, mbv3, resnet = (experiment_named(name) for name in (IMAGENET[0], *IMAGENET[2:]))
    memory, cifar = experiment_named("imagenet_mbv2_memory"), experiment_named("cifar100_resnet56")
    assert [each.data.crop_scale for each in (mbv2, mbv3, resnet)] == [0.25, 0.08, 0.25]
    assert (mbv2.training.epochs, resnet.training.epochs) == (250, 100)
    assert (memory.cost, mbv2.cost, memory.data) == ("peak_activations", "macs", mbv2.data)
    assert (cifar.data.name, cifar.network.name) == ("cifar100", "cifar_resnet56")


# The flags of github.com/enyac-group/Joslim@17b751a:readme.md that say something about a recipe; of
# ResNet-56 on CIFAR-100, epochs and tau are those of its note that the paper has 200 epochs.
COMMON = "--warmup 5 --lower_channel 0.42 --num_sampled_arch 2 --baseline -3 --prior_points 20"
COMMANDS = {
    "imagenet_mbv2": "--epochs 250 --baselr 0.125 --tau 625 --wd 4e-5 --batch_size 1024",
    "imagenet_mbv3": "--epochs 250 --baselr 0.125 --tau 625 --wd 4e-5 --batch_size 1024",
    "imagenet_resnet18": "--epochs 100 --baselr 0.125 --tau 250 --wd 4e-5 --batch_size 1024",
    "cifar100_resnet56": "--epochs 200 --baselr 0.1 --tau 156 --wd 5e-4 --batch_size 128",
    "cifar10_resnet20": "--epochs 200 --baselr 0.1 --tau 156 --wd 5e-4 --batch_size 128",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_recipes_are_those_of_the_authors_commands(name: str) -> None:
    words = f"{COMMANDS[name]} {COMMON}".split()
    command = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    experiment = experiment_named(name)
    training, search = experiment.training, experiment.search
    assert command == {
        "--epochs": training.epochs,
        "--baselr": training.lr_per_256,
        "--tau": training.ask_every_steps,
        "--wd": training.weight_decay,
        "--batch_size": training.batch_size,
        "--warmup": training.warmup_epochs,
        "--lower_channel": experiment.network.alpha_min,
        "--num_sampled_arch": training.sampled_per_step,
        "--baseline": search.reference,
        "--prior_points": search.initial_widths,
    }
    # What none of the commands asks for (--nesterov, --sync_bn), and what each leaves as it is.
    assert (training.nesterov, training.sync_batch_norm) == (False, False)
    assert (training.momentum, training.label_smoothing, search.beta) == (0.9, 0.1, 0.1)
    # joslim.py: lr = args.baselr * (args.batch_size / 256.)
    peak = training.lr_per_256 * training.batch_size / 256
    assert peak == pytest.approx(0.5 if name.startswith("imagenet") else 0.05)


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("imagenet_mbv1", "paper", "unknown experiment 'imagenet_mbv1'. Did you mean 'imagenet_mb"),
        (
            "digits",
            "smok",
            "unknown scale 'smok'. Did you mean 'smoke'? Known: paper, fast, short, smo",
        ),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name: str, scale: str, message: str) -> None:
    with pytest.raises(ValueError, match="Known: ") as refusal:
        experiment_named(name, scale)
    assert message in str(refusal.value)


@pytest.mark.parametrize("name", experiment_names())
def test_fast_is_the_published_experiment_in_other_arithmetic(name: str) -> None:
    """Divisors are left as they are where the first stage has no two multiples of 8."""
    published = experiment_named(name)
    scaled = experiment_named(name, "fast")
    narrow = (published.network.base_width or 16) < 16
    divisor, says = (1, "") if narrow else (8, ", channel counts in multiples of 8")
    assert scaled.scale == f"fast: bf16{says}"
    training = replace(published.training, precision="bf16", channels_last=True)
    network = replace(published.network, divisor=divisor)
    others = {"name": f"{name}-fast", "scale": scaled.scale}
    assert scaled == replace(published, network=network, training=training, **others)
    assert (fast(published).network.divisor == 1) is (name == "digits")


def test_short_is_a_tenth_with_the_root_of_as_many_requests() -> None:
    scaled = short(MBV2)
    assert scaled.scale == "short: 1/10 of the published epochs, searched on held-out images"
    training = replace(MBV2.training, epochs=25, warmup_epochs=0.5, ask_every_steps=198)
    data = replace(MBV2.data, search_split="holdout")
    assert scaled == replace(MBV2, scale=scaled.scale, data=data, training=training)
    training = short(TINY).training  # 2 epochs, 1 of warm-up: half of each
    assert (training.epochs, training.warmup_epochs, training.ask_every_steps) == (1, 0.5, 1)


def test_smoke_is_the_real_network_on_embedded_images() -> None:
    scaled = smoke(replace(MBV2, seeds=(4, 5)))
    data = scaled.data
    assert (data.name, data.image_size, data.in_memory) == ("digits_rgb", 32, True)
    assert (data.crop_scale, data.colour_jitter, data.lighting) == (None, 0, 0)
    assert scaled.seeds == (4,)
    assert widths_visited(scaled, 320) == 20 > scaled.search.initial_widths + 1


def test_cpu_takes_its_numbers_and_keeps_the_recipe() -> None:
    scaled = on_cpu(image_size=64, train_images=5_000, epochs=4, ask_every_steps=10)(MBV2)
    assert scaled.scale == "cpu: 4 epochs of 5,000 images, 64 x 64, searched on held-out images"
    assert (scaled.data.image_size, scaled.data.train_images) == (64, 5_000)
    assert (scaled.data.crop_scale, scaled.data.colour_jitter) == (0.25, 0.4)
    assert scaled.training.warmup_epochs == 0.5
    assert scaled.training.lr_per_256 == MBV2.training.lr_per_256
    assert scaled.seeds == (0,)


def test_vgg_on_a_cpu_says_what_it_changes_and_keeps_all_seeds() -> None:
    scaled = experiment_named("cifar10_vgg", "cpu")
    says = "15 epochs of 45,000 images, 16 x 16, 1/8 of the channels, searched on held-out images"
    assert scaled.scale == f"cpu: {says}"
    assert (scaled.network.base_width, scaled.training.batch_size) == (8, 64)
    assert (scaled.training.lr_per_256, scaled.training.nesterov) == (0.2, True)
    assert scaled.seeds == experiment_named("cifar10_vgg").seeds == tuple(range(100, 110))
    assert (scaled.data.search_images, scaled.data.test_images) == (2_000, 10_000)
