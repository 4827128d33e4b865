"""A line of small vision transformers on digits: LayerNorm and attention, and the same step.

python -m launch.train --config=configs/line_transformer_digits.py --workdir=runs/line_transformer_digits
"""

from configs import line_digits


def get_config(form: str = ""):
    config = line_digits.get_config(form)
    config.network = "vision_transformer_2_32_3_4"
    config.num_epochs = 2 if form == "tiny" else 100
    config.learning_rate = 0.02
    return config
