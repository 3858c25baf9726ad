"""``samcl predict``: one image and a prompt to a mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.output import Settings, emit_json, note, say

if TYPE_CHECKING:
    from samcl_core.config import BackboneParams
    from samcl_core.inference import Prompt

Point = tuple[float, float, int]
"""x, y in pixels of the image, label."""

__all__ = ["parse_box", "parse_point", "predict", "to_prompt"]


def predict(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="The image.")],
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y[,LABEL]", help="A point in pixels of the image; label 1 object (default), 0 background."
        ),
    ] = None,
    box: Annotated[str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="A box in pixels of the image.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Mask PNG. Default: <image>_mask.png here; *_overlay.png beside it."),
    ] = None,
    bank: Annotated[
        str | None,
        typer.Option(help="A bank folder, a step of the workspace, or @champion. Default: the newest bank."),
    ] = None,
    module: Annotated[str, typer.Option(help="auto, plain (the untouched model) or a domain.")] = "auto",
    backbone: Annotated[
        str | None, typer.Option(help="Outside of a workspace: name of the model. Default: the bank's.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Outside of a workspace: a weights file of your own.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: the workspace's, else auto.")
    ] = None,
    upsampling: Annotated[
        str | None,
        typer.Option(help="bilinear, or nearest as in the published code. Default: the workspace's, else bilinear."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Segment what the prompt points at; says which module was chosen and how sure the choice is."""
    from samcl_core.domains.images import load_image
    from samcl_core.errors import UsageError
    from samcl_core.inference import Segmenter

    settings: Settings = context.obj
    points, frame = [parse_point(text) for text in point or []], parse_box(box) if box else None
    mask_path = out or Path(f"{image.stem}_mask.png")
    if not image.is_file():
        raise UsageError(f"{image} is not a file, expected an image")
    if mask_path.suffix.lower() != ".png":
        raise UsageError(f"--out is {mask_path}, expected a .png file: a mask must not be compressed with loss")
    if not mask_path.absolute().parent.is_dir():
        raise UsageError(f"--out: folder {mask_path.absolute().parent} does not exist")
    picture = load_image(image)
    prompt = to_prompt(points, frame, width=picture.shape[1], height=picture.shape[0])
    folder, params, where = _choose_bank(settings, bank, backbone, checkpoint)
    mode = _mode(settings, upsampling)
    segmenter = Segmenter.load(folder, params, device or where)
    answer = segmenter.predict([picture], [prompt], module, upsampling=mode)[0]
    overlay_path = mask_path.with_name(f"{mask_path.stem}_overlay.png")
    _write(mask_path, overlay_path, picture, answer.mask, points)
    if not segmenter.backbone.is_pretrained:
        note(f"the backbone {segmenter.backbone.name} is untrained: expect poor masks")
    values = {
        "image": str(image),
        "mask": str(mask_path),
        "overlay": str(overlay_path),
        "module": answer.module,
        "is_chosen": module == "auto",
        "confidence": answer.confidence,
        "novelty": answer.novelty,
        "score": answer.score,
        "foreground_frac": float(answer.mask.mean()),
        "bank": None if segmenter.bank is None else segmenter.bank.digest,
    }
    emit_json(values) if as_json else _tell(values)


def parse_point(text: str) -> Point:
    """``X,Y`` or ``X,Y,LABEL`` as numbers; the label is 1 when left out.

    Raises:
        PromptError: anything else.
    """
    from samcl_core.errors import PromptError

    parts = text.split(",")
    try:
        x, y = float(parts[0]), float(parts[1])
        label = int(parts[2]) if len(parts) > 2 else 1
    except (ValueError, IndexError) as exc:
        raise PromptError(f"--point is {text!r}, expected X,Y or X,Y,LABEL") from exc
    if len(parts) > 3 or label not in (0, 1):
        raise PromptError(f"--point is {text!r}, expected X,Y or X,Y,LABEL with label 1 or 0")
    return x, y, label


def parse_box(text: str) -> tuple[float, float, float, float]:
    """``X0,Y0,X1,Y1`` as numbers.

    Raises:
        PromptError: anything else, or an empty box.
    """
    from samcl_core.errors import PromptError

    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as exc:
        raise PromptError(f"--box is {text!r}, expected X0,Y0,X1,Y1") from exc
    if not (x0 < x1 and y0 < y1):
        raise PromptError(f"--box is {text!r}, expected X0 < X1 and Y0 < Y1")
    return x0, y0, x1, y1


def to_prompt(points: list[Point], box: tuple[float, float, float, float] | None, *, width: int, height: int) -> Prompt:
    """Prompts in pixels of a ``width`` x ``height`` image in the square frame of the models.

    Raises:
        PromptError: no prompt at all, or one outside of the image.
    """
    from samcl_core.serving import prompt_in_pixels

    labels = [label for *_, label in points]
    return prompt_in_pixels([(x, y) for x, y, _ in points], labels, box, width=width, height=height)


def _mode(settings: Settings, asked: str | None) -> Literal["bilinear", "nearest"]:
    """How masks reach the image's size: as asked, else as the workspace evaluates."""
    from flows.cli.bank import workspace_of
    from samcl_core.errors import UsageError

    if asked not in (None, "bilinear", "nearest"):
        raise UsageError(f"--upsampling is {asked!r}, expected 'bilinear' or 'nearest'")
    workspace = workspace_of(settings) if asked is None else None
    chosen = asked if workspace is None else workspace.params().evaluate.upsampling
    return "nearest" if chosen == "nearest" else "bilinear"


def _choose_bank(
    settings: Settings, bank: str | None, backbone: str | None, checkpoint: Path | None
) -> tuple[Path, BackboneParams, str]:
    """Bank folder, backbone and device: from the workspace, or from the bank itself where there is none."""
    from flows.cli.bank import bank_folder, workspace_of
    from samcl_core.config import BackboneParams
    from samcl_core.files import sha256_file

    folder = bank_folder(settings, bank)
    workspace = workspace_of(settings)
    if workspace is not None and backbone is None and checkpoint is None:
        params = workspace.params()
        return folder, params.backbone, params.device
    if backbone is None:
        from samcl_core.bank import Bank

        backbone = Bank.load(folder).backbone
    if checkpoint is None:
        return folder, BackboneParams(name=backbone), "auto"
    return folder, BackboneParams(name=backbone, checkpoint=str(checkpoint), sha256=sha256_file(checkpoint)), "auto"


def _write(mask_path: Path, overlay_path: Path, picture: Any, mask: Any, points: list[Point]) -> None:
    import numpy as np

    from samcl_core.drawing import overlay, write_png

    write_png(mask_path, mask.astype(np.uint8) * 255)
    drawn = overlay(picture, mask, None, [(x, y) for x, y, _ in points], [label for *_, label in points])
    write_png(overlay_path, drawn)


def _tell(values: dict[str, Any]) -> None:
    how = f"chosen, confidence {values['confidence']:.0%}" if values["is_chosen"] else "as asked"
    if values["is_chosen"] and values["novelty"] > 1:
        how += f", the image fits no known domain (novelty {values['novelty']:.2f})"
    say(f"module: {values['module']} ({how})")
    say(f"mask: {values['mask']} ({values['foreground_frac']:.1%} of the image, expected IoU {values['score']:.2f})")
    say(f"overlay: {values['overlay']}")
