from tfstruct import plotting


def test_curves_of_a_table_are_means_over_seeds_and_dots_are_runs():
    rows = [("a", 10, [-9.0, -8.0]), ("a", 1, [-20.0]), ("b", 1, [-11.0]), ("b", 10, [-7.0])]
    points = [plotting.Point(panel, *row) for panel in ("first", "second") for row in rows]
    figure = plotting.draw_table(points, axis="training images", metric="nats")
    assert [axes.get_title() for axes in figure.axes] == ["first", "second"]
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("training images", "nats", "log")
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    drawn = {name: (list(line.get_xdata()), list(line.get_ydata())) for name, line in lines.items()}
    assert drawn == {"a": ([1, 10], [-20.0, -8.5]), "b": ([1, 10], [-11.0, -7.0])}
    dots = [line for line in axes.lines if line.get_label().startswith("_")]
    assert [sorted(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in dots] == [
        [(1, -20.0), (10, -9.0), (10, -8.0)],
        [(1, -11.0), (10, -7.0)],
    ]
    for line, dot in zip(lines.values(), dots, strict=True):
        assert line.get_color() == dot.get_color()
    assert lines["a"].get_color() != lines["b"].get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
