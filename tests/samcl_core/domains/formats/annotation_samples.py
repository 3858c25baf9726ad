"""Small data sets with annotation files, laid out as their documentation says. Every image is 16 x 12 pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

WIDTH, HEIGHT = 16, 12
CAT = (1, 1, 4, 2)
TWO_PARTS = ((8, 0, 2, 2), (12, 0, 2, 2))
ROW = [1, 2, 5, 4, 180]
"""Plain COCO run lengths, down the columns: 6 pixels."""


def rectangle(x: int, y: int, width: int, height: int) -> list[float]:
    """Outline of a box: COCO counts pixels from edge to edge, so that it covers width x height of them."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def coco_file(names: Sequence[str], objects: Sequence[dict[str, Any]], **fields: Any) -> str:
    """Images are numbered from 1; an annotation without another ``image_id`` is of the first."""
    content = {
        "info": {"year": 2017},
        "licenses": [],
        "images": [{"id": at, "file_name": name, "width": WIDTH, "height": HEIGHT} for at, name in enumerate(names, 1)],
        "annotations": [
            {"id": at, "image_id": 1, "category_id": 17, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1} | annotation
            for at, annotation in enumerate(objects)
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    }
    return json.dumps(content | fields)


def coco(tree: Any) -> None:
    """COCO 2017 (https://cocodataset.org/#format-data, #download)."""
    names = ["000000000001.jpg", "000000000002.jpg", "000000000003.jpg"]
    tree.image(*(f"train2017/{name}" for name in names), "val2017/000000000004.jpg", "val2017/000000000001.jpg")
    objects = [
        {"segmentation": [rectangle(*CAT)]},
        {"segmentation": [rectangle(*part) for part in TWO_PARTS], "category_id": 18},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": ROW}, "image_id": 2, "iscrowd": 1},
        # The same run lengths as pycocotools writes them.
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "1252_5"}, "image_id": 2, "category_id": 18},
    ]
    tree.text("annotations/instances_train2017.json", coco_file(names, objects))
    objects = [{"segmentation": [rectangle(0, 0, 8, 6)], "image_id": 1}]
    tree.text("annotations/instances_val2017.json", coco_file(["000000000004.jpg", "000000000001.jpg"], objects))
    captions = [{"id": 1, "image_id": 1, "caption": "a cat"}]
    tree.text("annotations/captions_train2017.json", json.dumps({"images": [], "annotations": captions}))


def coco_tool(tree: Any) -> None:
    """An export of CVAT (https://docs.cvat.ai/docs/dataset_management/formats/format-coco/)."""
    tree.image("images/default/a.png", "images/default/b.png", "images/default/c.png")
    objects = [{"segmentation": [rectangle(*CAT)], "image_id": at} for at in (1, 3)]
    tree.text("annotations/instances_default.json", coco_file(["a.png", "b.png", "c.png"], objects))


def roboflow(tree: Any) -> None:
    """COCO JSON of Roboflow (https://rfdetr.roboflow.com/latest/learn/train/dataset-formats)."""
    for at, split in enumerate(("train", "valid", "test")):
        tree.image(f"{split}/a_jpg.rf.{at}.jpg", f"{split}/same.jpg")
        objects = [{"segmentation": [rectangle(*CAT)]}, {"segmentation": [rectangle(0, 0, 2, 2)], "image_id": 2}]
        tree.text(f"{split}/_annotations.coco.json", coco_file([f"a_jpg.rf.{at}.jpg", "same.jpg"], objects))


def voc_palette() -> list[int]:
    """VOC's colours, as the devkit's VOClabelcolormap.m makes them."""
    colours = []
    for index in range(256):
        colour, rest = [0, 0, 0], index
        for bit in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colours += colour
    return colours


def voc(tree: Any) -> None:
    """VOC2012 (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/index.html).

    255 is void, 15 a person, 1 an aeroplane.
    """
    palette = voc_palette()
    for name, person, planes in (
        ("2007_000032", (0, 0, 3, 3), 2),
        ("2007_000039", (4, 4, 5, 2), 1),
        ("x", (0, 0, 1, 1), 0),
    ):
        tree.image(f"JPEGImages/{name}.jpg")
        boxes = [(10, 0, 2, 4), (13, 0, 2, 4)][:planes]
        void = ((8, 10, 8, 2), 255)
        tree.codes(f"SegmentationClass/{name}.png", (person, 15), *((box, 1) for box in boxes), void, palette=palette)
        objects = [(person, 1), *((box, at) for at, box in enumerate(boxes, 2))]
        tree.codes(f"SegmentationObject/{name}.png", *objects, void, palette=palette)
    tree.image("JPEGImages/2007_000001.jpg", "JPEGImages/2008_000001.jpg")
    tree.text("Annotations/2007_000032.xml", "<annotation><folder>VOC2012</folder></annotation>")
    tree.text("ImageSets/Segmentation/train.txt", "2007_000032\n")
    tree.text("ImageSets/Segmentation/val.txt", "2007_000039\n")
    tree.text("ImageSets/Segmentation/trainval.txt", "2007_000032\n2007_000039\n")
    tree.text("ImageSets/Segmentation/test.txt", "2008_000001\n")
    tree.text("ImageSets/Main/train.txt", "2007_000001\n")


def yolo_line(number: int, *parts: tuple[int, int, int, int]) -> str:
    """A line of a label file: shares of width and height."""
    numbers = [value / (WIDTH, HEIGHT)[at % 2] for part in parts for at, value in enumerate(rectangle(*part))]
    return " ".join([str(number), *(f"{number:.6f}" for number in numbers)]) + "\n"


YAML = """# Train/val/test sets as 1) dir: path/to/imgs, 2) file: path/to/imgs.txt, or 3) list: [path/to/imgs1, ..]
path: ../datasets/coco8-seg  # dataset root dir
train: images/train  # train images (relative to 'path')
val: images/val  # val images (relative to 'path')
test:  # test images (optional)

names:
  0: person
  1: bicycle
"""


def yolo(tree: Any) -> None:
    """COCO8-seg (https://docs.ultralytics.com/datasets/segment/)."""
    tree.text("data.yaml", YAML)
    tree.image(*(f"images/train/{name}.jpg" for name in ("a", "b", "c")), "images/val/d.jpg")
    tree.text("labels/train/a.txt", yolo_line(0, (0, 0, 8, 6)) + yolo_line(1, (8, 6, 8, 3)))
    tree.text("labels/train/b.txt", "\n")
    tree.text("labels/val/d.txt", yolo_line(1, (4, 3, 4, 3)))


def yolo_roboflow(tree: Any) -> None:
    """The same as Roboflow exports it: a folder a split, and paths that begin above them."""
    tree.text(
        "data.yaml", "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cat']\n"
    )
    for split in ("train", "valid", "test"):
        tree.image(f"{split}/images/{split}.jpg")
        tree.text(f"{split}/labels/{split}.txt", yolo_line(0, (0, 0, 8, 6)))


def labelme_file(name: str, *shapes: dict[str, Any], **fields: Any) -> str:
    """A JSON file as LabelMe writes it."""
    given = {"label": "cat", "group_id": None, "description": "", "shape_type": "polygon", "flags": {}, "mask": None}
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [given | shape for shape in shapes],
        "imagePath": name,
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    return json.dumps(content | fields)


def corners(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """The four corners of a box."""
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]


def labelme(tree: Any) -> None:
    """LabelMe's instance segmentation example (https://github.com/wkentaro/labelme, examples/instance_segmentation)."""
    tree.image("data_annotated/2011_000003.jpg", "data_annotated/2011_000006.jpg")
    shapes = [
        {"points": corners(*CAT)},
        {"points": [[6, 2], [10, 5]], "shape_type": "rectangle", "label": "dog"},
        {"points": [[3, 3]], "shape_type": "point", "label": "nose"},
        {"points": [[0, 0], [9, 9]], "shape_type": "linestrip", "label": "leash"},
    ]
    tree.text("data_annotated/2011_000003.json", labelme_file("2011_000003.jpg", *shapes))
    parts = [{"points": corners(*part), "group_id": 0} for part in TWO_PARTS]
    tree.text("data_annotated/2011_000006.json", labelme_file("..\\data_annotated\\2011_000006.jpg", *parts))
    tree.text("labels.txt", "__ignore__\n_background_\ncat\ndog\n")


def cvat_file(*images: str, root: str = "") -> str:
    """An XML file as CVAT writes it."""
    meta = "<meta><task><name>t</name><mode>annotation</mode></task></meta>"
    content = f"<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n{root}{content}'


def cvat_image(name: str, *shapes: str, fields: str = "") -> str:
    """One image and its shapes."""
    return f'<image id="0" name="{name}" {fields} width="{WIDTH}" height="{HEIGHT}">{"".join(shapes)}</image>'


CVAT_SHAPES = (
    '<polygon label="cat" occluded="0" points="1.00,1.00;5.00,1.00;5.00,3.00;1.00,3.00" z_order="0"></polygon>',
    '<box label="plate" xtl="8.00" ytl="4.00" xbr="11.00" ybr="9.00"><attribute name="text">A</attribute></box>',
    # Row by row from (10, 1) on: ..## and .#.#
    '<mask label="cat" occluded="0" rle="2, 2, 1, 1, 1, 1" left="10" top="1" width="4" height="2" z_order="0"></mask>',
    '<polyline label="line" occluded="0" points="0.00,0.00;9.00,9.00"></polyline>',
    '<points label="wheel" occluded="0" points="5.00,5.00"></points>',
    '<tag label="good_frame" source="manual"></tag>',
)


def cvat(tree: Any) -> None:
    """CVAT for images 1.1 (https://docs.cvat.ai/docs/dataset_management/formats/format-xml/ and format-cvat)."""
    tree.image("images/filename000.jpg", "images/sub/filename001.jpg", "images/tagged.jpg")
    second, tagged = cvat_image("sub/filename001.jpg", CVAT_SHAPES[0]), cvat_image("tagged.jpg", CVAT_SHAPES[-1])
    images = [cvat_image("filename000.jpg", *CVAT_SHAPES), second, tagged]
    tree.text("annotations.xml", cvat_file(*images))


def cvat_project(tree: Any) -> None:
    """A project with subsets: ``images/<subset>/`` and the attribute ``subset``."""
    images = []
    for subset in ("Train", "Validation", "Test"):
        tree.image(f"images/{subset}/same.jpg")
        images.append(cvat_image("same.jpg", CVAT_SHAPES[0], fields=f'subset="{subset}" task_id="1"'))
    tree.text("annotations.xml", cvat_file(*images))


SAMPLES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "coco": ("coco", coco),
    "coco_tool": ("coco", coco_tool),
    "roboflow": ("coco", roboflow),
    "voc": ("voc", voc),
    "yolo": ("yolo", yolo),
    "yolo_roboflow": ("yolo", yolo_roboflow),
    "labelme": ("labelme", labelme),
    "cvat": ("cvat", cvat),
    "cvat_project": ("cvat", cvat_project),
}
"""Name of a sample tree to the format it has and what draws it."""
