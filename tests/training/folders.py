"""Short runs in a folder, for the tests of folders."""

import dataclasses
import json

from lirpa_multinorm.training import train
from tests.toy import CONFIG, SETS, SPEC, data


def run(
    output=None, images=None, spec=SPEC, resume=False, overwrite=False, extend=False, **changes
):
    config = dataclasses.replace(CONFIG, **{"loss": "natural", **changes})
    return train(
        spec,
        data() if images is None else images,
        SETS,
        config,
        output,
        progress=False,
        resume=resume,
        overwrite=overwrite,
        extend=extend,
    )


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def config_of(folder):
    return json.loads((folder / "config.json").read_text())
