"""From headers to volumes. Each input is a list of made headers whose right grouping is known by construction."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading.headers import JPEG_2000, JPEG_LS, heights_mm, instance, stack

from headct.reading.files import Source
from headct.reading.instances import GridFile, Instance
from headct.reading.series import Volume, assemble


def one_volume(images: list[Instance]) -> Volume:
    volumes, rejections = assemble(images)
    assert rejections == []
    assert len(volumes) == 1
    return volumes[0]


def two_volumes(images: list[Instance]) -> list[Volume]:
    volumes, rejections = assemble(images)
    assert rejections == []
    assert len(volumes) == 2
    return volumes


def test_order_is_position_not_number_nor_name():
    images = [instance(z, name=f"I{90 - z}", instance_number=int(-z)) for z in (0, 10, 5, 20, 15)]
    assert heights_mm(one_volume(images)) == [0, 5, 10, 15, 20]


@given(order=st.permutations(range(12)), double=st.integers(0, 5))
def test_the_order_of_files_changes_nothing(order, double):
    images = [*stack(6), *stack(4, series_uid="1.9", first_mm=200.0, name=""), instance(5.0 * double, name="again.dcm")]
    images.append(replace(images[0], source=Source("/data/copy", None, "copy", 2000)))
    assert assemble([images[index] for index in order]) == assemble(images)


def test_nothing_gives_nothing():
    assert assemble([]) == ([], [])


def test_series_are_kept_apart_and_one_slice_is_a_volume():
    assert len(assemble([instance(0), instance(5, series_uid="1.4"), instance(5, study_uid="1.9")])[0]) == 3


def again(images: list[Instance], up_mm: float = 0.0, **changes) -> list[Instance]:
    """Other images of the same places, or a little higher, in the same folder."""
    return [
        replace(
            image,
            sop_uid=f"0{image.sop_uid}" if index % 2 else f"9{image.sop_uid}",  # UIDs tell nothing of their order
            source=replace(image.source, name=image.source.name + "2"),
            position_mm=(*image.position_mm[:2], image.position_mm[2] + up_mm),
            **changes,
        )
        for index, image in enumerate(images)
    ]


@pytest.mark.parametrize("up_mm", [0.0, 0.3, 2.5])
@pytest.mark.parametrize("owner", ["patient_id", "study_uid"])
def test_two_patients_with_one_series_uid_are_never_mixed(owner, up_mm):
    for volume in two_volumes([*stack(20), *again(stack(20), up_mm, **{owner: "other"})]):
        assert len(volume.slices) == 20
        assert len({getattr(image, owner) for image in volume.images}) == 1


@pytest.mark.parametrize("owner", ["patient_id", "study_uid"])
def test_a_slice_that_names_no_owner_belongs_to_the_only_one(owner):
    images = stack(10)
    images[4] = replace(images[4], **{owner: ""})
    assert len(one_volume(images).slices) == 10


def test_without_series_uid_a_folder_is_a_series():
    bare = {"series_uid": "", "study_uid": "", "patient_id": ""}
    images = [instance(z, name=f"{folder}/{z}.dcm", **bare) for folder in "ab" for z in (0, 5, 10)]
    assert [len(volume.slices) for volume in two_volumes(images)] == [3, 3]


@pytest.mark.parametrize(
    "other",
    [
        {"row_step_mm": (0.0, -0.475, 0.156)},  # 18 degrees
        {"row_step_mm": (0.0, -0.45, 0.0), "col_step_mm": (-0.45, 0.0, 0.0)},
        {"pixels": {"rows": 16}},
    ],
    ids=["orientation", "pixel size", "matrix"],
)
def test_what_cannot_share_a_grid_is_split_though_it_does_not_overlap(other):
    images = stack(4) + stack(4, first_mm=20.0, **other)
    assert [len(volume.slices) for volume in two_volumes(images)] == [4, 4]


def test_rounded_orientations_are_one():
    images = [instance(5.0 * i, row_step_mm=(0.0, -0.5, 1e-4 * (i % 2))) for i in range(6)]
    assert len(one_volume(images).slices) == 6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"kernel": "H30s"}, {"kernel": "H60s"}),
        ({"kvp": 80.0}, {"kvp": 140.0}),
        ({"image_type": ("ORIGINAL", "PRIMARY", "AXIAL")}, {"image_type": ("DERIVED", "SECONDARY", "MPR")}),
        ({"frame_of_reference_uid": "1.7"}, {"frame_of_reference_uid": "1.8"}),
        ({"acquisition_number": 1}, {"acquisition_number": 2}),
        ({"temporal_position": 1}, {"temporal_position": 2}),
        ({"acquisition_time": "120000"}, {"acquisition_time": "120100"}),
        ({"content_time": "120000"}, {"content_time": "120100"}),
    ],
)
def test_what_covers_the_head_twice_becomes_two_volumes(one, other):
    images = stack(6, **one)
    images += [
        replace(image, sop_uid=image.sop_uid + ".2", source=Source("/x", None, f"second/{i}", 1))
        for i, image in enumerate(stack(6, **other))
    ]
    volumes = two_volumes(images)
    assert [heights_mm(volume) for volume in volumes] == [[0, 5, 10, 15, 20, 25]] * 2
    for volume in volumes:
        assert (
            len({(image.kernel, image.kvp, image.acquisition_number, image.content_time) for image in volume.images})
            == 1
        )
        assert volume.repeated


def test_two_thicknesses_in_one_uid_are_two_volumes_though_no_position_is_shared():
    thick = stack(6, thickness_mm=5.0)
    thin = [instance(0.5 + i, name=f"thin/{i}", thickness_mm=1.0) for i in range(25)]
    assert sorted(len(volume.slices) for volume in two_volumes(thick + thin)) == [6, 25]


def test_contiguous_stacks_of_two_thicknesses_and_image_types_are_one_head():
    fossa = stack(13, 4.0, thickness_mm=4.0, image_type=("ORIGINAL", "PRIMARY", "AXIAL", "ADD"), kvp=140.0)
    vertex = stack(13, 7.0, 49.1, thickness_mm=7.0, image_type=("ORIGINAL", "PRIMARY", "AXIAL"), kvp=120.0)
    volume = one_volume(vertex + fossa)
    assert len(volume.slices) == 26
    assert not volume.repeated


def test_stacks_that_share_the_slice_at_their_seam_are_one_head():
    volume = one_volume(stack(6, 4.0, thickness_mm=4.0) + stack(6, 7.0, 20.0, name="", thickness_mm=7.0, sop_uid="9"))
    assert len(volume.slices) == 11


def test_another_frame_of_reference_in_every_slice_splits_nothing():
    assert len(one_volume([instance(5.0 * i, frame_of_reference_uid=f"1.{i}") for i in range(5)]).slices) == 5


def test_time_points_with_an_acquisition_for_each_rotation():
    """Two passes of an axial scanner that counts one acquisition for every two slices."""
    images = [
        instance(5.0 * z, name=f"{turn}/{z}", acquisition_number=1 + 4 * turn + z // 2)
        for turn in (0, 1)
        for z in range(8)
    ]
    first, second = two_volumes(images)
    assert {image.acquisition_number for image in first.images} == {1, 2, 3, 4}
    assert {image.acquisition_number for image in second.images} == {5, 6, 7, 8}


def test_time_points_told_apart_by_instance_number_alone():
    images = [instance(5.0 * z, name=f"{turn}/{z}", instance_number=8 * turn + z) for turn in (0, 1) for z in range(8)]
    assert [sorted(i.instance_number for i in volume.images) for volume in two_volumes(images)] == [
        list(range(8)),
        list(range(8, 16)),
    ]


def test_time_points_told_apart_by_their_folders_alone():
    images = [instance(5.0 * z, name=f"{turn}/{z}") for turn in (0, 1) for z in range(8)]
    assert [len({image.source.name[0] for image in volume.images}) for volume in two_volumes(images)] == [1, 1]


@pytest.mark.parametrize("up_mm", [0.0, 0.2, 0.3, 1.5])
def test_repetitions_that_nothing_tells_apart_are_refused(up_mm):
    """To choose at each position would make one head of two."""
    volumes, (rejection,) = assemble([*stack(20), *again(stack(20), up_mm)])
    assert volumes == []
    assert (rejection.code, len(rejection.files)) == ("same-position", 40)
    assert "nothing tells apart" in rejection.sentence


@pytest.mark.parametrize("up_mm", [0.2, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("clock", ["acquisition_number", "temporal_position", "acquisition_time"])
def test_passes_a_little_apart_are_two_volumes(up_mm, clock):
    one, other = ("0900", "0910") if clock == "acquisition_time" else (1, 2)
    for volume in two_volumes([*stack(20, **{clock: one}), *again(stack(20), up_mm, **{clock: other})]):
        assert len(volume.slices) == 20
        assert len({getattr(image, clock) for image in volume.images}) == 1


def test_passes_by_rotations_half_a_gap_apart_are_two_volumes():
    first = [instance(5.0 * z, acquisition_number=z // 2) for z in range(20)]
    second = [
        replace(image, acquisition_number=10 + index // 2) for index, image in enumerate(again(stack(20), up_mm=2.5))
    ]
    for volume in two_volumes(first + second):
        assert len({image.acquisition_number < 10 for image in volume.images}) == 1


def test_every_other_slice_of_a_contiguous_stack_is_no_pass():
    images = [instance(5.0 * z, thickness_mm=5.0, acquisition_number=1 + z % 2) for z in range(20)]
    assert len(one_volume(images).slices) == 20


@given(times=st.permutations(range(20)), thickness_mm=st.sampled_from([None, 5.0]))
def test_acquisition_times_in_disorder_make_no_passes(times, thickness_mm):
    images = [instance(5.0 * z, acquisition_time=f"{times[z]:06d}", thickness_mm=thickness_mm) for z in range(20)]
    assert len(one_volume(images).slices) == 20


@pytest.mark.parametrize("late", range(1, 19))
def test_a_slice_out_of_its_turn_makes_no_pass(late):
    order = [z for z in range(20) if z != late] + [late]
    images = [instance(5.0 * z, acquisition_number=order.index(z)) for z in range(20)]
    assert len(one_volume(images).slices) == 20


SETTINGS = {
    "kvp": 120.0,
    "kernel": "H30s",
    "thickness_mm": 5.0,
    "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
    "frame_of_reference_uid": "1.7",
}
UNSTATED = {"kvp": None, "kernel": "", "thickness_mm": None, "image_type": (), "frame_of_reference_uid": ""}
OTHERS = {
    "kvp": 140.0,
    "kernel": "H60s",
    "thickness_mm": 3.0,
    "image_type": ("DERIVED", "SECONDARY"),
    "frame_of_reference_uid": "1.8",
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("places", [[0], [7], [19], [3, 4], [3, 11, 12]], ids=str)
def test_what_a_slice_does_not_state_splits_nothing(name, places):
    images = stack(20, **SETTINGS)
    for place in places:
        images[place] = replace(images[place], **{name: UNSTATED[name]})
    assert len(one_volume(images).slices) == 20


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("places", [[0], [7], [3, 12]], ids=str)
def test_a_slice_or_two_of_other_settings_that_fill_a_hole_stay(name, places):
    images = stack(20, **SETTINGS)
    for place in places:
        images[place] = replace(images[place], **{name: OTHERS[name]})
    assert len(one_volume(images).slices) == 20


def test_every_other_slice_without_a_kernel_belongs_to_the_stack():
    images = [instance(5.0 * z, kernel="" if z % 2 else "H30s") for z in range(20)]
    assert len(one_volume(images).slices) == 20


def test_a_slice_without_a_kernel_goes_where_one_is_missing():
    soft, bone = stack(20, kernel="H30s"), again(stack(20), kernel="H60s")
    soft[7] = replace(soft[7], kernel="")
    volumes = two_volumes([*soft, *bone])
    assert sorted(sorted({image.kernel for image in volume.images}) for volume in volumes) == [["", "H30s"], ["H60s"]]
    assert [len(volume.slices) for volume in volumes] == [20, 20]


def test_a_slice_of_another_kernel_between_two_slices_is_no_part_of_the_stack():
    volumes = two_volumes([*stack(20, kernel="H30s"), instance(37.5, kernel="H60s")])
    assert sorted(len(volume.slices) for volume in volumes) == [1, 20]


def test_a_slice_beside_the_others_costs_itself():
    images = stack(20)
    x, y, z = images[7].position_mm
    images[7] = replace(images[7], position_mm=(x + 120, y, z))
    (volume,), (rejection,) = assemble(images)
    assert len(volume.slices) == 19
    assert volume.file_dropped
    assert (rejection.code, rejection.files) == ("no-geometry", (images[7].source.name,))
    assert "120 mm" in rejection.sentence


def test_a_double_takes_the_place_of_a_slice_beside_the_others():
    images = stack(20)
    x, y, z = images[7].position_mm
    astray = instance(z, name="a.dcm", sop_uid="0", position_mm=(x + 120, y, z))
    (volume,), (rejection,) = assemble([*images, astray])
    assert list(volume.images) == images
    assert rejection.files == ("a.dcm",)


def test_frames_of_one_file_are_not_taken_apart():
    images = [instance(5.0 * z, name="all.dcm", frame=z) for z in range(20)]
    images[7] = replace(images[7], position_mm=(300.0, 0.0, 35.0))
    volumes, (rejection,) = assemble(images)
    assert volumes == []
    assert (rejection.code, rejection.files) == ("no-geometry", ("all.dcm",))


def test_one_slice_taken_again_costs_itself():
    again = instance(15.0, name="again.dcm", acquisition_number=2)
    volume = one_volume([*stack(10, acquisition_number=1), again])
    assert len(volume.slices) == 10
    assert volume.slices[3].doubles == (again,)
    assert "again.dcm" in volume.files


def test_the_acquisition_with_most_slices_gives_the_slice():
    again = instance(15.0, name="again.dcm", acquisition_number=2, sop_uid="0.first.by.uid")
    assert one_volume([*stack(10, acquisition_number=1), again]).slices[3].doubles == (again,)


def test_a_broken_image_never_takes_the_place_of_a_whole_one():
    broken = instance(15.0, name="again.dcm", sop_uid="0", fault="cut off")
    assert one_volume([*stack(10), broken]).slices[3].doubles == (broken,)


def test_all_at_one_position_is_no_volume():
    images = [instance(61.5, name=f"{i}.dcm", acquisition_number=i) for i in range(4)]
    volumes, (rejection,) = assemble(images)
    assert volumes == []
    assert (rejection.code, len(rejection.files)) == ("same-position", 4)


def test_bolus_tracking_in_the_series_costs_the_head_nothing():
    monitoring = [
        instance(12.5, name=f"mon/{i}", image_type=("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 MON")) for i in range(9)
    ]
    volumes, (rejection,) = assemble(stack(10, image_type=("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI")) + monitoring)
    assert [len(volume.slices) for volume in volumes] == [10]
    assert rejection.code == "same-position"


@pytest.mark.parametrize(
    ("kept", "copy"),
    [
        ({}, {"pixels": {"transfer_syntax": JPEG_2000, "lossy": True, "length_bytes": None}}),
        ({}, {"pixels": {"transfer_syntax": JPEG_LS, "length_bytes": None}}),
        (
            {"pixels": {"transfer_syntax": JPEG_LS, "length_bytes": None}},
            {"pixels": {"transfer_syntax": JPEG_2000, "lossy": True}},
        ),
        ({}, {"fault": "cut off"}),
    ],
    ids=["lossy", "compressed", "lossy though uncompressed", "broken"],
)
def test_of_two_copies_the_better_is_kept(kept, copy):
    copies = [replace(instance(5.0, **copy), source=Source("/c", None, "a-copy.dcm", 1))]
    volume = one_volume([*stack(1), instance(5.0, **kept), *stack(2, first_mm=10.0), *copies])
    assert [part.copies for part in volume.slices] == [(), tuple(copies), (), ()]


def test_one_acquisition_exported_in_several_compressions_is_one_image():
    syntaxes = [JPEG_2000, JPEG_LS, "1.2.840.10008.1.2.5"]
    images = [
        instance(0.0, name=f"{i}.dcm", pixels={"transfer_syntax": syntax, "lossy": syntax == JPEG_2000})
        for i, syntax in enumerate(syntaxes)
    ]
    (part,) = one_volume(images).slices
    assert part.chosen is images[1]
    assert set(part.copies) == {images[0], images[2]}


def test_equal_uids_at_different_positions_are_no_copies():
    assert len(one_volume([instance(5.0 * i, sop_uid="1.1") for i in range(5)]).slices) == 5


def test_one_missing_slice_is_bridged_and_a_wide_gap_is_not():
    assert len(one_volume([image for image in stack(10) if image.position_mm[2] != 20]).slices) == 9
    volumes, (rejection,) = assemble([image for image in stack(12) if not 20 <= image.position_mm[2] <= 35])
    assert volumes == []
    assert rejection.code == "missing-slices"
    assert len(rejection.files) == 8


def test_without_a_file_its_copy_or_double_takes_its_place():
    copy = replace(instance(5.0), source=Source("/c", None, "copy.dcm", 1))
    double = instance(5.0, name="double.dcm", sop_uid="9")
    volume = one_volume([*stack(10), copy, double])
    names = [image.source.name for image in volume.slices[1].candidates]
    for left in (names[1:], names[2:]):
        volume = volume.without(names[0])
        names = left
        assert [image.source.name for image in volume.slices[1].candidates] == left
    assert len(volume.without(names[0]).slices) == 9
    assert volume.without(*volume.files) is None


def test_grid_files_are_volumes_and_equal_ones_are_copies():
    one, same, other = (
        GridFile(Source(f"/{n}", None, n, 9), "nifti", digest)
        for n, digest in [("b.nii", "11"), ("c.nii", "11"), ("a.nii", "22")]
    )
    volumes, (rejection,) = assemble([same, one, other])
    assert [volume.files for volume in volumes] == [("a.nii",), ("b.nii",)]
    assert (rejection.code, rejection.files) == ("duplicate-file", ("c.nii",))
    assert volumes[0].without("a.nii") is None
    assert volumes[0].without("b.nii") == volumes[0]


def test_volumes_travel_to_workers():
    volume = one_volume(stack(3))
    assert pickle.loads(pickle.dumps(volume)) == volume
