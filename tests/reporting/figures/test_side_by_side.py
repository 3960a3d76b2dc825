"""Several experiments side by side: what each panel shows, and what the title says."""

from matplotlib.colors import to_hex

from pareco.reporting.figures import side_by_side_figure
from tests.reporting.claim_records import records_of

TWO = records_of(
    {
        ("pareco", 0): [(200, 40.0), (1000, 20.0)],
        ("pareco", 1): [(200, 44.0), (1000, 22.0)],
        ("us_net", 0): [(250, 50.0)],
    }
)
OTHER = records_of(
    {("us_net", 5): [(500, 9.0), (1000, 7.0)], ("pareco", 5): [(600, 6.0)]},
    network="resnet20",
    equal_macs=7,
)
ELSEWHERE = records_of({("pareco", 0): [(200, 40.0)]}, experiment="elsewhere")


def test_a_panel_for_each_with_the_mean_over_seeds() -> None:
    figure = side_by_side_figure([TWO, OTHER], ["cifar10_vgg"], "cpu", "pareco")
    first, second = figure.axes
    pareco, us_net, *_ = first.get_lines()
    assert pareco.get_xydata().tolist() == [[20.0, 42.0], [100.0, 21.0]]  # type: ignore[union-attr]
    assert us_net.get_xydata().tolist() == [[25.0, 50.0]]  # type: ignore[union-attr]
    assert [line.get_xydata().tolist() for line in second.get_lines()] == [  # type: ignore[union-attr]
        [[60.0, 6.0]],
        [[50.0, 9.0], [100.0, 7.0]],
    ]
    for axes in (first, second):  # the same look everywhere
        colours = [to_hex(line.get_color()) for line in axes.get_lines()[:2]]  # type: ignore[arg-type]
        assert colours == ["#0173b2", "#de8f05"]


def test_titles_say_scale_seeds_and_what_has_not_run() -> None:
    figure = side_by_side_figure([TWO, OTHER], ["cifar10_vgg"], "cpu", "pareco")
    said = " ".join(figure.get_suptitle().split())
    assert said.startswith("scale: cpu; mean over seeds")
    assert said.endswith("not run: cifar10_vgg")
    first, second = (axes.get_title("left") for axes in figure.axes)
    assert first == "resnet8, cifar10\n32 px, 1 k MACs, 1-2 seeds"
    assert second == "resnet20, cifar10\n32 px, 1 k MACs, 1 seed, equal compute"
    departures = {"digits": "changed: training.epochs 3, training.batch_size 7, data.name flowers"}
    figure = side_by_side_figure([TWO, ELSEWHERE], [], "paper", "pareco", departures)
    first, second = (axes.get_title("left").splitlines()[2:] for axes in figure.axes)
    assert first == ["changed: training.epochs 3,", "training.batch_size 7, data.name flowers"]
    assert second == []  # as the scale has it
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["pareco", "us_net"]
