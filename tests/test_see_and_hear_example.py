"""The example of "Do Audio-Visual LLMs Really See and Hear?" runs on the embedded model."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "see_and_hear" / "see_and_hear.py"


def test_the_example_prints_what_the_paper_measures_and_draws_it(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("see_and_hear", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(clips=8, pairs=2, out=tmp_path / "out")
    said = capsys.readouterr().out
    for words in (
        "counterfactual: Fidelity",
        "relative drop",
        "LatentUnderstanding",
        "unshifted",
        "Spearman",
        "audio -> last",
    ):
        assert words in said
    drawn = {path.stem for path in (tmp_path / "out").glob("*.html")}
    assert drawn == {"latent", "lens", "shift", "attribution"}
