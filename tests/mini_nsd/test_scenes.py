"""The simulated scenes: what the rest of mini_nsd relies on."""
import json

import numpy as np
import pytest

from mini_nsd import scene_captions, scene_rendering, scene_sampling, scenes

SERIES = [scene_sampling.sample(11, index) for index in range(60)]
PICTURES = [scene_rendering.render(scene, 128) for scene in SERIES]


def test_seed_and_index_alone_decide_a_scene():
    again = scene_sampling.sample(11, 7)
    assert again == SERIES[7]
    assert scene_captions.captions(again) == scene_captions.captions(SERIES[7])
    assert np.array_equal(scene_rendering.render(again, 128).image, PICTURES[7].image)
    assert scene_sampling.sample(12, 7) != SERIES[7]


def test_objects_come_nearest_first_and_the_front_one_is_large():
    for scene in SERIES:
        depths = [thing.depth for thing in scene.objects]
        assert 1 <= len(depths) <= 4 and depths == sorted(depths)
        low, high = scenes.NEAREST_SIZE
        assert low <= scene.objects[0].size <= high
        assert all(thing.size >= scenes.SMALLEST_SIZE for thing in scene.objects)


def test_every_object_keeps_a_third_of_itself_in_view():
    for scene, picture in zip(SERIES, PICTURES):
        for number in range(len(scene.objects)):
            assert (picture.labels == number).sum() >= 0.35 * picture.amodal[number].sum()


def test_a_label_lies_within_its_silhouette_and_the_nearest_silhouette_wins():
    for picture in PICTURES:
        covered = picture.amodal.any(0)
        assert np.array_equal(covered, picture.labels >= 0)
        assert np.array_equal(picture.labels[covered], picture.amodal.argmax(0)[covered])


def test_depth_is_that_of_the_object_seen():
    for scene, picture in zip(SERIES, PICTURES):
        assert picture.depth.dtype == np.float32 and picture.depth.max() <= scenes.FAR
        for number, thing in enumerate(scene.objects):
            seen = picture.depth[picture.labels == number]
            assert np.all(seen <= thing.depth + 1e-5)
            assert np.all(seen >= thing.depth * (1 - thing.size))


def test_a_picture_is_the_same_at_every_size():
    for scene, small in zip(SERIES[:10], PICTURES):
        large = scene_rendering.render(scene, 256).image.reshape(128, 2, 128, 2, 3).mean((1, 3))
        assert np.abs(large - small.image).mean() < 2.0     # of 255


def test_an_object_has_its_colour():
    """The mean hue of a plain object in daylight is closest to the hue its colour names."""
    right = []
    for scene, picture in zip(SERIES, PICTURES):
        if scene.background.kind == "night":
            continue
        for number, thing in enumerate(scene.objects):
            if thing.pattern == "plain" and thing.colour != "white":
                seen = picture.image[picture.labels == number].mean(0)
                names = [name for name in scenes.COLOURS if name != "white"]
                angles = [_cosine(seen, np.array(scenes.COLOUR_RGB[name])) for name in names]
                right.append(names[int(np.argmax(angles))] == thing.colour)
    assert np.mean(right) > 0.95


def _cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_captions_are_short_varied_and_name_the_front_object_first():
    for scene in SERIES:
        five = scene_captions.captions(scene)
        assert len(five) == 5 and len(set(five)) >= 4
        front = f"{scene.objects[0].colour} {scene.objects[0].shape}"
        for caption in five:
            assert len(caption.split()) <= 24
            words = caption.replace(",", "").split()
            named = [f"{a} {b}" for a, b in zip(words, words[1:]) if a in scenes.COLOURS and b in scenes.SHAPES]
            assert named[0] == front
            assert set(named) <= {f"{thing.colour} {thing.shape}" for thing in scene.objects}


def test_more_captions_than_templates_can_be_had():
    assert len(scene_captions.captions(SERIES[0], 9)) == 9


def test_a_description_survives_json():
    description = json.loads(json.dumps(scenes.describe(SERIES[3])))
    assert [thing["shape"] for thing in description["objects"]] == [thing.shape for thing in SERIES[3].objects]


@pytest.mark.parametrize("names, of", [(scenes.SHAPES, "shape"), (scenes.COLOURS, "colour")])
def test_every_shape_and_colour_occurs(names, of):
    assert {getattr(thing, of) for scene in SERIES for thing in scene.objects} == set(names)
