"""The benchmark of rotations by angle: its table and its figure."""

from benchmarks import angles

ROWS = [
    {"network": "a", "n": 4, "angles": [5, 10], "certified": [1.0, 0.5], "not broken": [1.0, 0.5]},
    {"network": "b", "n": 4, "angles": [5, 10], "certified": [0.75, 0], "not broken": [1.0, 0.5]},
]


def test_shares_by_angle_are_a_table_and_a_figure(tmp_path):
    (table,) = angles.tables(ROWS).values()
    assert table[0] == {"network": "a", "5": 1.0, "10": 0.5}
    (name, draw), *others = angles.draw(ROWS, "angles").items()
    assert draw(path=tmp_path / name).is_file() and not others
