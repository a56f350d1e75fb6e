"""SparsePO: token-level DPO that learns which tokens' log-ratios and divergences count.

  python -m rubric_jax train --config=configs/zoo/sparsepo.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN

-log sigma(beta (u - d)) + L1 of the masks: u the masked log-ratios, d the masked divergences from
the reference over the whole vocabulary; masks are ReLU(linear(LayerNorm)) of the reference's
states. Columns: chosen, rejected, images. MaPO, without parameters: heads of kind "activation".

The paper's beta: 0.8 for IMDB and TL;DR, 0.1 for HH; L1 0, but 1e-3 for one mask on HH. Ours: masks
start near 1, and learn 100 times as fast as the model.
"""

from configs import llava

METHOD = {
    "row": 32,
    "name": "SparsePO (MaPO)",
    "paper": "arXiv:2410.05102",
    "status": "partial",
    "missing": "masks mixed of all layers' states (here of the last layer's); their dropout",
}


def get_config():
    config = llava.get_config()
    config.model.heads = {"mask": {"head": "mask"}, "kl_mask": {"head": "mask"}}
    pair = {"win": "chosen", "lose": "rejected", "beta": 0.1}
    config.objective = {"sparsepo": {**pair, "mask": "mask", "kl_mask": "kl_mask"}}
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay = ((r"heads/.*", 1.0), (r".*", 0.0))
    config.optimizer.scale = ((r"heads/.*", 100.0), (r".*", 1.0))
    config.train.reference = "step"
    return config
