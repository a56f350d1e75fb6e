"""PAL-B: every user has an ideal point, mixed of prototypes that the users share.

  python -m rubric_jax train --config=configs/zoo/pal.py --config.model.checkpoint=DIR \
      --config.data.path=prefs.jsonl --workdir=RUN
  python -m rubric_jax export --workdir=RUN --out=HF_DIR

-log sigma(scale (cos(f(chosen), a) - cos(f(rejected), a))), a = sum_k softmax(W[user])_k g_k(x).
The axes are the users: name yours in config.data.axes. Columns: chosen, rejected, images, axis
(who preferred). For a new user train W alone, from HF_DIR: optimizer.trainable =
((r"heads/users/.*", True), (r".*", False)).

Ours: 64 dimensions, two prototypes, four users, the model frozen.
"""

from configs import llava

METHOD = {
    "row": 52,
    "name": "PAL",
    "paper": "arXiv:2406.08469",
    "status": "partial",
    "missing": "the loss at every token (here at the last); a learned scale of the cosines",
}


def get_config():
    config = llava.get_config()
    config.data.axes = ("user_0", "user_1", "user_2", "user_3")
    config.model.heads = {
        "point": {"head": "last", "outputs": 64, "width": 256},
        "prototypes": {"head": "prompt", "outputs": 2 * 64, "width": 256},
        "users": {"head": "table", "rows": 4, "outputs": 2},
    }
    pair = {"win": "chosen", "lose": "rejected"}
    heads = {"head": "point", "prototypes": "prototypes", "users": "users"}
    config.objective = {"bt_user": {**pair, **heads, "scale": 14.3}}
    config.optimizer.learning_rate = 1e-4
    config.optimizer.trainable = ((r"heads/.*", True), (r".*", False))
    config.train.reference = "none"
    return config
