"""Readers of the real formats, and the folder layout the study expects (the one detectron2's users know)."""

from maskclip.data.coco import open_coco_instances, open_coco_panoptic, open_coco_sample
from maskclip.data.datasets import DATASETS, DatasetEntry, open_dataset, same_pictures, scored_on
from maskclip.data.images import read_image
from maskclip.data.semantic import open_categories, open_semantic_folder
from maskclip.data.types import Annotation, Category, Dataset, Sample, Segment

__all__ = [
    "DATASETS", "Annotation", "Category", "Dataset", "DatasetEntry", "Sample", "Segment", "open_categories",
    "open_coco_instances", "open_coco_panoptic", "open_coco_sample", "open_dataset", "open_semantic_folder",
    "read_image", "same_pictures", "scored_on",
]  # fmt: skip
