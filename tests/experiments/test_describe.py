"""What a folder holds, as text and as one HTML file; and what its methods are called in the literature."""

import html.parser
import json
import os
import pathlib
import shutil
import types

import numpy as np
import pytest

from launch import describe as launcher
from subspaces_jax import checkpoints, records
from subspaces_jax.errors import RunDirectoryError
from subspaces_jax.experiments import analyze, describe, fields, references
from subspaces_jax.experiments.studies import STUDIES
from subspaces_jax.networks.families import NETWORKS

STORED = pathlib.Path(__file__).parent / "stored_run"


class Page(html.parser.HTMLParser):
    """The texts and the sources of images of an HTML page; tags that are not closed in their order are an error."""

    def __init__(self, path):
        super().__init__()
        self.texts, self.images, self._open = [], [], []
        self.feed(path.read_text())
        assert not self._open

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        elif tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    folder = tmp_path_factory.mktemp("describe") / "a<b"
    shutil.copytree(STORED, folder)
    return describe.run(None, folder)


def test_a_run_is_described_from_its_own_files(described):
    own = checkpoints.restore(described["folder"])
    assert described["kind"] == "train" and described["checkpoints"] == [11, 22]
    assert described["rows"] == 2 and described["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    norms = {name: norms for name, _, _, norms in described["layers"]}
    np.testing.assert_allclose(
        norms["Dense_0/kernel"], np.linalg.norm(own.params["Dense_0"]["kernel"].reshape(2, -1), axis=1), rtol=1e-6
    )
    assert described["changed"]["network"] == "mlp_8" and "momentum" not in described["changed"]
    assert described["metrics"]["step"] == 22 and not described["problems"]
    assert list(described["tables"]) == ["points"] and "midpoint" in described["tables"]["points"]
    assert {pathlib.Path(path).name for path in described["figures"]} == {"training.png", "profile.png"}


def test_figures_of_results_that_changed_since_are_drawn_anew(described, tmp_path):
    shutil.copytree(described["folder"], tmp_path / "run")
    result, (profile,) = tmp_path / "run/results/points.json", (tmp_path / "run/figures").glob("profile.png")
    for seconds, is_new in ((-100, False), (100, True)):
        profile.write_bytes(b"old")
        at = profile.stat().st_mtime + seconds
        os.utime(result, (at, at))
        describe.run(None, tmp_path / "run")
        assert (profile.read_bytes() != b"old") == is_new


def test_its_report_stands_alone(described):
    page = Page(pathlib.Path(described["report"]))
    text = " ".join(page.texts)
    assert "a<b: training run" in text and "Wortsman et al." in text and "Dense_0/kernel" in text
    assert described["tables"]["points"] in page.texts
    assert len(page.images) == 2 and all(image.startswith("data:image/png;base64,iVBORw0KGgo") for image in page.images)
    assert "http" not in pathlib.Path(described["report"]).read_text()


def test_the_command_prints_it(described, capsys):
    launcher.run(None, described["folder"])
    out = capsys.readouterr().out
    assert "610 parameters, 2 rows" in out
    assert "Dense_0/kernel" in out and out.strip().endswith("report.html")


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(STORED, folder)
    shutil.rmtree(folder / "checkpoints")
    (folder / "metrics.jsonl").write_text("nonsense\n")
    facts = json.loads((folder / "results" / "points.json").read_text())
    facts["scores"] = 3
    (folder / "results" / "points.json").write_text(json.dumps(facts))
    (folder / "figures").mkdir(exist_ok=True)
    shutil.copy(STORED.parent / "stored_run" / "config.json", folder / "figures" / "old.png")
    found = describe.run(None, folder)
    assert len(found["problems"]) == 2 and "no checkpoint" in found["problems"][0]
    assert "another version" in found["tables"]["points"]
    assert found["problems"][1] in Page(folder / "report.html").texts


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError):
        describe.run(None, tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_studies_and_sweeps_are_described(tmp_path):
    config = analyze.complete({"analysis": "family", "runs": "nowhere"})
    (tmp_path / "study").mkdir()
    (tmp_path / "sweep").mkdir()
    records.write_header(tmp_path / "study", "study", config)
    found = describe.run(None, tmp_path / "study")
    assert found["changed"] == {"analysis": "family", "runs": "nowhere"} and found["kind"] == "study"
    (tmp_path / "other").mkdir()  # fields that several studies have are compared with this one's defaults
    records.write_header(tmp_path / "other", "study", analyze.complete({"analysis": "barriers", "runs": "nowhere"}))
    assert describe.run(None, tmp_path / "other")["changed"] == {"analysis": "barriers", "runs": "nowhere"}
    records.write_header(tmp_path / "sweep", "sweep", {"config": "configs/line_digits.py", "fields": ""})
    shutil.copytree(STORED, tmp_path / "sweep" / "line_0")
    shutil.copytree(STORED, tmp_path / "sweep" / "line_1")
    shutil.rmtree(tmp_path / "sweep" / "line_1" / "results")
    (tmp_path / "sweep" / "logs").mkdir()
    for name in ("line_1", "line_2"):
        (tmp_path / "sweep" / "logs" / f"{name}.txt").write_text("$ run\nerror: no such network\n")
    found = describe.run(None, tmp_path / "sweep")
    states = {"line_0": "finished", "line_1": "not finished", "line_2": "no run: error: no such network"}
    assert found["runs"] == states and "family" in found["tables"]


@pytest.mark.parametrize(
    "config, papers",
    [
        ({"subspace": "none", "network": "lenet"}, []),
        ({"subspace": "simplex(4)"}, ["2102.10472"]),
        ({"subspace": "bezier(3)", "schedule": "fge(low=.1)"}, ["1802.10026"]),
        ({"network": "cifar_resnet_20"}, ["1512.03385", "2102.10472"]),
        ({"network": "cifar_resnet(depth=8)"}, ["1512.03385", "2102.10472"]),
        ({"network": "somewhere.else:Net", "optimizer": "adam"}, ["1412.6980"]),
        ({"label_smoothing": 0.1, "pixel_shuffle": True, "beta": 0.0}, ["1512.00567", "1611.03530"]),
        ({"connector": "ot_wa"}, ["2008.00741"]),
        ({"analysis": "instability", "runs": "a"}, ["1912.05671"]),
    ],
)
def test_a_run_knows_the_papers_of_its_methods(config, papers):
    found = references.of(config)
    assert {text.partition("arXiv:")[2] for text in found if "arXiv" in text} == set(papers)
    assert all(text[0].isupper() for text in found)


def test_a_paper_that_two_methods_cite_is_named_once_and_with_its_title():
    """Documentation of two kinds, the shorter one without a title."""
    thing = types.SimpleNamespace(__doc__="X.\n\n    Reference: A and B, A Title, 2020, arXiv:2001.00001, section 3.\n")
    assert references.cited(thing) == ["A and B, A Title, 2020, arXiv:2001.00001"]
    assert all(references.of({"analysis": name}) for name in STUDIES if name not in ("power_law", "overview"))
    titles = [text for name in STUDIES for text in references.of({"analysis": name})]
    titles += [text for name in NETWORKS for text in references.of({"network": name})]
    assert not any("`" in text or text.startswith("see ") for text in titles), "papers, and not where else to look"
    assert all(len(text.split(", ")) >= 4 for text in titles if "arXiv" in text)


def test_every_default_of_a_training_is_cited_without_complaint():
    defaults = {name: field.default for name, field in fields.FIELDS.items()}
    assert any("2102.10472" in text for text in references.of(defaults))
