"""The report is one file that fetches nothing, says what the artifacts say and what is missing, and can be browsed."""
import html.parser
import re
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from utils import layout
from utils.completion import completion_results, picture_features
from utils.evaluate import identification
from utils.occlusion import occluded_pictures
from utils.report import page_pictures
from utils.storage import text_files

IMAGES = 6
STIMULI = np.arange(10, 10 + IMAGES)
HOSTILE = "</script><script>window.stolen = true</script><img src=x onerror='window.stolen = true'>"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


def index_row(roi, **more):
    return dict.fromkeys(completion_results.FIELDS, float("nan")) | {
        "roi": roi, "feature": "local", "primary": True, "enough_signal": True, "index": 0.54, "low": 0.44,
        "high": 0.67, "p": 0.0005, "p_corrected": 0.0005, "truth": 0.5, "whole": 1.04, "whole_low": 0.87,
        "whole_high": 1.25,
        "hidden": 0.14, "hidden_low": -0.05, "hidden_high": 0.29, "images": 6, "views": 12, "voxels": 100} | more


def write_csv(path, rows):
    text_files.write_text(path,
                          "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")


def write_completion(ws):
    """Twelve views of six images behind two masks, two of which hide an object wholly."""
    random = np.random.default_rng(1)
    shape = (2 * IMAGES, picture_features.GRID, picture_features.GRID, 3)
    write_csv(ws.completion_result("index", "csv"), [index_row("early"), index_row(
        "ventral", index=0.76, low=0.7, high=0.81, hidden=-0.06, hidden_low=-0.09, hidden_high=-0.02)])
    text_files.write_json(layout.sidecar(ws.completion_result("index", "csv")), {
        "made_by": "amodal_completion.py", "options": {"subject": "subj01", "rois": ["early", "ventral"], "seed": 42},
        "version": "0.1.0", "context_r2": {"local": 0.84}, "generator": {"no captions": [0.16, 0.04, 0.28]},
        "simulated": True})
    write_csv(ws.completion_result("margins", "csv"), [
        {"roi": "early", "margin": margin, "index": 0.5, "low": 0.4, "high": 0.6} for margin in (0.0, 0.15)])
    with h5py.File(ws.completion_result("decoded", "h5"), "w") as file:
        hidden = np.zeros(shape[:3], bool)
        hidden[:IMAGES, :10], hidden[IMAGES:, 10:] = True, True
        file["stim_ids"] = np.tile(STIMULI, 2)
        file["mask_ids"] = np.repeat(np.array(["halves_a", "halves_b"], object), IMAGES)
        file["gone"], file["hidden"] = np.arange(len(hidden)) < 2, hidden
        file["truth"] = random.uniform(-0.3, 0.3, shape).astype(np.float16)
        file["context"] = np.where(hidden[..., None], np.full(3, 0.1), np.nan).astype(np.float16)
        for roi in ("early", "ventral"):
            file[f"decoded/{roi}"] = random.uniform(-0.3, 0.3, shape).astype(np.float16)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Three runs with pictures and scores, trials, captions (one is hostile), and the completion index of two ROIs."""
    workdir = tmp_path_factory.mktemp("report")
    ws, random = layout.Workspace(workdir, "subj01"), np.random.default_rng(0)
    for run in ("cvpr", "cvpr-occluded", "cvpr-shuffled7"):
        folder = ws.samples(run)
        folder.mkdir(parents=True)
        for image in range(IMAGES):
            paths = [layout.sample_image(folder, image, sample) for sample in (0, 1)]
            paths.append(layout.original_image(folder, image))
            for path in paths + ([layout.occluded_image(folder, image)] if "occluded" in run else []):
                Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
        text_files.write_json(layout.manifest(folder), {
            "made_by": "diffusion_decoding.py", "model": "tiny/sd", "revision": "c0ffee", "version": "0.1.0",
            "options": {"method": "cvpr", "dataset": "nsd", "seed": 42, "true_features": False}})
        r = random.normal(size=(IMAGES, IMAGES)) + (2 if run == "cvpr" else 0) * np.eye(IMAGES)
        record = {"options": {"run": run, "feature": "clip"}, "samples": 2} | identification.summary(r)
        identification.write_scores(ws.per_image_scores(run, "clip"), range(IMAGES), r, record)
    ws.mrifeat.mkdir(parents=True)
    np.save(ws.stims, np.repeat(STIMULI, 3))
    np.save(ws.stims_ave, STIMULI)
    np.save(ws.stims_ave_test, np.ones(IMAGES, bool))
    people = ["a red cone", "a blue ring", HOSTILE, "a star", "a cube", "a red ball"]
    text_files.write_text(ws.captions_people(), "".join(f"{caption}\n" for caption in people))
    write_completion(ws)
    return workdir


@pytest.fixture
def run(monkeypatch, command_line, tmp_path):
    """Run the stage as its command line does, with an empty NSD_ROOT; gives returncode, stdout and stderr."""
    monkeypatch.setenv("NSD_ROOT", str(tmp_path))
    monkeypatch.delenv("NSD_MODELS", raising=False)

    def command(workdir, *arguments):
        return command_line("make_report.py", "--workdir", workdir, "--subject", "subj01", *arguments)
    return command


class Page(html.parser.HTMLParser):
    """The elements of a page: [(name, attributes)]; and its text, without scripts and styles."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.words, self._inside = [], [], None
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def made(run, workdir):
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    content = layout.Workspace(workdir, "subj01").report.read_text(encoding="utf-8")
    return content, Page(content), done


def test_the_page_asks_for_nothing_outside_itself_and_every_picture_has_words(run, workdir):
    content, page, _ = made(run, workdir)
    for name, attributes in page.elements:
        for key in ("src", "href", "srcset", "action", "data"):
            assert re.match(r"#|data:", attributes.get(key, "#")), (name, attributes)
    assert "@import" not in content and "url(" not in content
    assert any("default-src 'none'" in attributes.get("content", "") for _, attributes in page.elements)
    pictures = [attributes for name, attributes in page.elements if name == "img"]
    assert len(pictures) > 20 and all(attributes.get("alt") or attributes.get("id") for attributes in pictures)


def test_numbers_are_those_of_the_artifacts(run, workdir):
    _, page, _ = made(run, workdir)
    for told in ("0.54 [0.44, 0.67]", "0.76 [0.70, 0.81]", "2 of 2 regions", "6 test images", "12 views", "Simulated",
                 "1 of 2 controls hold 0; not ventral, −0.06 [−0.09, −0.02]", "c0ffee",
                 "python amodal_completion.py --subject subj01 --roi early ventral --seed 42"):
        assert told in page.text, told
    record = text_files.read_json(layout.Workspace(workdir, "subj01").per_image_scores("cvpr",
                                                                                       "clip").with_suffix(".json"))
    assert f"{record['accuracy']:.3f} [{record['interval'][0]:.3f}, {record['interval'][1]:.3f}]" in page.text


def test_a_caption_cannot_become_part_of_the_page(run, workdir):
    content, page, _ = made(run, workdir)
    assert "<script>window.stolen" not in content and "<img src=x" not in content
    assert HOSTILE in page.text


def test_a_page_is_kept_until_what_it_shows_changes(run, workdir):
    made(run, workdir)
    _, _, again = made(run, workdir)
    assert "up to date" in again.stdout
    path = layout.sample_image(layout.Workspace(workdir, "subj01").samples("cvpr"), 0, 0)
    Image.new("RGB", (16, 16), "red").save(path)
    _, _, changed = made(run, workdir)
    assert "made" in changed.stdout


def test_what_is_missing_is_named_with_its_command(run, tmp_path):
    nothing = run(tmp_path)
    assert nothing.returncode == 1 and nothing.stderr.count("error: ") == 1
    folder = layout.Workspace(tmp_path, "subj01").samples("cvpr")
    folder.mkdir(parents=True)
    for path in (layout.original_image(folder, 0), layout.sample_image(folder, 0, 0)):
        Image.new("RGB", (16, 16)).save(path)
    _, page, done = made(run, tmp_path)
    for script in ("make_subjmri.py", "amodal_completion.py", "identification.py", "evaluate.py", "decode_captions.py"):
        assert f"python {script} --subject subj01" in page.text and script in done.stderr
    assert "python diffusion_decoding.py --subject subj01 --method cvpr --true_features" in page.text
    assert "Simulated" not in page.text
    layout.sample_image(folder, 0, 0).write_bytes(b"PNG")
    assert "not a whole picture" in run(tmp_path).stderr


def test_channels_become_the_colours_that_they_were_taken_from():
    images = np.random.default_rng(2).integers(0, 256, (3, occluded_pictures.SMALL, occluded_pictures.SMALL, 3),
                                               np.uint8)
    channels = picture_features.local(images).reshape(-1, picture_features.GRID, picture_features.GRID, 3)
    size = occluded_pictures.SMALL // picture_features.GRID
    pooled = images.reshape(3, picture_features.GRID, size, picture_features.GRID, size, 3).mean((2, 4)) / 255
    assert np.allclose(page_pictures.to_rgb(channels), pooled, atol=1e-5)


def test_pictures_are_made_smaller_until_they_fit(workdir):
    paths = sorted(layout.Workspace(workdir, "subj01").samples("cvpr").glob("*.png"))
    size = {side: sum(len(page_pictures.embedded_file(path, side)) for path in paths) for side in (256, 160)}
    assert page_pictures.fitting_side(paths, 1.01 * size[256]) == 256
    assert page_pictures.fitting_side(paths, 1.01 * size[160]) == 160
    assert page_pictures.fitting_side(paths, 1) == page_pictures.SIDES[-1]


# in a browser


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        pytest.skip(f"no Chromium on PATH ({', '.join(CHROMIUMS)}): apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, run, workdir):
    """The report, opened at 1280 × 900; fails afterwards if anything was logged, thrown or fetched."""
    made(run, workdir)
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce")
    faults, asked = [], []
    opened.on("console", lambda message: faults.append(message.text))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    url = layout.Workspace(workdir, "subj01").report.as_uri()
    opened.goto(url)
    yield opened
    opened.close()
    assert not faults
    assert [address for address in asked if not address.startswith("data:")] == [url]


def edge(page, number=2):
    return float(page.get_attribute(f"#edge-{number}", "aria-valuenow"))


def test_the_edge_follows_the_mouse_and_the_keys(page):
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert abs(edge(page) - 80) < 2
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] / 2)
    assert abs(edge(page) - 80) < 2
    assert "inset(0px 0px 0px 8" in page.eval_on_selector("#over", "each => getComputedStyle(each).clipPath")
    for key, value in (("Home", 0), ("ArrowRight", 2), ("End", 100), ("ArrowLeft", 98)):
        page.press("#edge-2", key)
        assert edge(page) == value
    page.check("input[value=occluded]")
    assert (edge(page, 1), edge(page, 2)) == (34, 67) and page.is_visible("#between")
    page.press("#edge-1", "End")
    assert (edge(page, 1), edge(page, 2)) == (100, 100)


def test_images_are_chosen_with_the_keys_and_with_one_stop_for_tab(page):
    def chosen():
        return page.eval_on_selector_all(".card[tabindex='0']", "each => each.map(card => card.dataset.at)")

    page.focus(".card[tabindex='0']")
    for key, at in (("ArrowRight", "1"), ("End", "5"), ("ArrowRight", "5"), ("Home", "0"), ("ArrowLeft", "0"),
                    ("ArrowRight", "1")):
        page.keyboard.press(key)
        assert chosen() == [at] and page.evaluate("document.activeElement.dataset.at") == at
    assert page.get_attribute("#under", "alt") == "Original test image 1: a blue ring"
    assert re.fullmatch("Reconstruction decoded from simulated brain activity by method cvpr, sample 1, "
                        r"identification \(clip\) [01]\.\d\d", page.get_attribute("#over", "alt"))
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "edge-2"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.at") == "1"


def test_the_filter_and_the_order_choose_what_is_shown(page):
    def shown():
        return page.eval_on_selector_all(".card", "each => each.map(card => Number(card.dataset.at))")

    def scores():
        return [float(score) for score in page.locator(".card .score").all_text_contents()]

    page.keyboard.press("/")
    page.keyboard.type("red")
    assert shown() == [0, 5] and page.inner_text("#count").startswith("2 of 6")
    page.fill("#query", "nothing such")
    assert shown() == [] and not page.is_visible("#stage")
    page.keyboard.press("Escape")
    assert len(shown()) == IMAGES
    page.select_option("#run", "cvpr-shuffled7")
    page.select_option("#order", "worst")
    ordered = scores()
    assert ordered == sorted(ordered) and ordered[0] < ordered[-1]
    page.select_option("#band", "0 0.5")
    assert scores() == [score for score in ordered if score < 0.5]
    assert page.get_attribute("#over", "alt").startswith(
        "Control: reconstruction decoded from simulated brain activity with shuffled trials")


def test_the_theme_is_the_systems_until_it_is_chosen(page):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.emulate_media(color_scheme="dark")
    dark = paper()
    assert light != dark and page.inner_text("#theme") == "Light"
    page.click("#theme")
    assert paper() == light and page.inner_text("#theme") == "Dark"


def test_a_hostile_caption_is_only_words_in_the_browser(page):
    page.focus(".card[tabindex='0']")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#words dd").first.inner_text() == HOSTILE
    assert page.evaluate("window.stolen") is None


def test_a_phone_does_not_scroll_sideways(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
