"""Finetune the bundled sca-tiny with the library's own Trainer; `my-boxes` holds boxes in Pascal VOC's form."""

from transformers import Trainer, TrainingArguments

from sca_hf import ScaForConditionalGeneration, ScaProcessor, bundled_model
from sca_hf.data import hold_out, load_regions
from sca_hf.training import RegionCollator, SeededDataset, apply_preset, pretrain_detail_encoder, training_augmentation


model = ScaForConditionalGeneration.from_pretrained(bundled_model("sca-tiny"))
processor = ScaProcessor.from_pretrained(bundled_model("sca-tiny"))
(regions,), (held_out,) = hold_out([load_regions("voc", root="my-boxes")], 0.2)
side = model.config.sam_config.vision_config.image_size
changes = {"scale": [0.7, 1.8], "rotate": 8, "color": 0.25, "paste": {"number": 4, "size": [0.1, 0.5], "rotate": 8}}
records = SeededDataset(regions, seed=0, augmentation=training_augmentation(changes, side, regions))
pretrain_detail_encoder(model, processor, records, "runs/my-boxes", steps=1500)  # the names alone, first
apply_preset(model, "mixer+lm")  # a small language model learns new words; a large one does well with "mixer"
arguments = TrainingArguments(
    output_dir="runs/my-boxes",
    max_steps=600,
    learning_rate=1e-3,
    weight_decay=1e-4,
    lr_scheduler_type="cosine",
    warmup_steps=100,
    eval_strategy="steps",
    label_names=["labels"],  # by default the labels of points count too, and there is no eval_loss
    remove_unused_columns=False,  # records are not arguments of the model: the collator makes those
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=records,
    eval_dataset=held_out,
    data_collator=RegionCollator(processor),
    processing_class=processor,
)
trainer.train()
trainer.save_metrics("eval", trainer.evaluate())
trainer.save_model("runs/my-boxes/model")
