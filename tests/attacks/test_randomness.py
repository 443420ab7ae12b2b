"""Random numbers that belong to the examples."""

import torch

from lirpa_multinorm import AttackSettings, PerturbationL2Box, PerturbationLinf, Region
from lirpa_multinorm.attacks import RowGenerator, attack_regions


def test_rows_do_not_depend_on_the_batch():
    keys = [(7, index) for index in range(6)]
    whole, parts = RowGenerator(keys), [RowGenerator(keys[:2]), RowGenerator(keys[2:])]
    for kind in ("rand", "randn", "rand"):  # again, from where each stream is
        every = getattr(whole, kind)((6, 3, 4))
        split = [getattr(item, kind)((len(item.generators), 3, 4)) for item in parts]
        assert torch.equal(every, torch.cat(split)) and len(every.flatten().unique()) == 72


def test_type_and_range():
    numbers = RowGenerator(range(200)).rand((200, 5), dtype=torch.float64)
    assert numbers.dtype == torch.float64 and 0 <= numbers.min() < 0.05 and 0.95 < numbers.max() < 1
    assert abs(RowGenerator(range(200)).randn((200, 50)).mean()) < 0.05


def test_attacks_take_a_generator_per_region():
    model, x = torch.nn.Linear(4, 3), torch.rand(5, 4)
    y, settings = model(x).argmax(1), AttackSettings(steps=1, restarts=2, try_center=False)
    sets = [PerturbationLinf(0.1), PerturbationL2Box(0.3)]

    def attacked(rows, places):
        regions = [Region(x[rows], sets[place]) for place in places]
        starts = [RowGenerator([(place, index) for index in range(5)[rows]]) for place in places]
        return attack_regions(model, regions, [y[rows]] * len(places), settings, starts)

    both = attacked(slice(0, 5), [0, 1])
    for place in (0, 1):
        alone = torch.cat([attacked(slice(i, i + 1), [place])[0] for i in range(5)])
        assert torch.allclose(both[place], alone, atol=1e-6)
