"""Data: sources (TFDS), the whole set as uint8 on the device, batches and augmentation inside the step."""
