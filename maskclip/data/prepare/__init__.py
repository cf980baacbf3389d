"""The real data sets from what their owners publish: one function a set."""

from collections.abc import Callable

from maskclip.data.prepare.ade20k import prepare_ade20k
from maskclip.data.prepare.ade20k_full import prepare_ade20k_full
from maskclip.data.prepare.coco import prepare_coco
from maskclip.data.prepare.lvis import prepare_lvis
from maskclip.data.prepare.pascal_context import prepare_pascal_context

PREPARATIONS: dict[str, Callable[..., dict[str, int]]] = {
    "coco": prepare_coco,
    "ade20k": prepare_ade20k,
    "ade20k-full": prepare_ade20k_full,
    "pascal-context": prepare_pascal_context,
    "lvis": prepare_lvis,
}
