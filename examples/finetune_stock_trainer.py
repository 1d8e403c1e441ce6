"""Finetune the bundled sca-tiny with the library's own Trainer; `my-boxes` holds boxes in Pascal VOC's form."""

from transformers import Trainer, TrainingArguments

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.captioning import bundled_model
from sca_hf.data import load_regions
from sca_hf.training.collator import RegionCollator


model = ScaForConditionalGeneration.from_pretrained(bundled_model())
processor = ScaProcessor.from_pretrained(bundled_model())
regions = load_regions("voc", root="my-boxes").train_test_split(0.2, seed=0)
arguments = TrainingArguments(
    output_dir="runs/my-boxes",
    max_steps=1000,
    learning_rate=1e-3,
    per_device_train_batch_size=8,
    eval_strategy="steps",
    label_names=[
        "labels"
    ],  # without it the Trainer takes the labels of points for labels too, and reports no eval_loss
    remove_unused_columns=False,  # records are no arguments of the model: the collator makes those
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=regions["train"],
    eval_dataset=regions["test"],
    data_collator=RegionCollator(processor),
    processing_class=processor,
)
trainer.train()
trainer.save_metrics("eval", trainer.evaluate())
trainer.save_model("runs/my-boxes/model")
