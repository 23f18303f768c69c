"""Run folders of alignment, made by hand."""

import json

from experiments.align import answer_log
from experiments.align.answer_log import Answered


def write(folder, method, seed, rewards, kls, **settings):
    """A run as experiments.align leaves it."""
    folder.mkdir(parents=True)
    entries = {"method": method, "seed": seed, "kl_coefficient": 0.05, **settings}
    (folder / "config.json").write_text(json.dumps({"settings": entries}))
    lines = [{"updates": 0, "answers": 0, "sampled_reward": [0.0]}]
    for i, (reward, kl) in enumerate(zip(rewards, kls, strict=True)):
        measured = {"reward": reward, "gold": reward / 2, "kl_ref": kl, "kl_ref_by_k3": kl + 0.5}
        lines.append({"updates": i, "answers": 32 * i} | {k: [x] for k, x in measured.items()})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text("{}")
    answer_log.append(folder, [Answered(0, "?", "!", 0.0, None, True)])
    return folder


def rows_in(tmp_path):
    """Three seeds each: ours has 0.2 more reward at the end, and half the KL on the way."""
    folders = []
    for seed in range(3):
        noise = 0.01 * seed
        for method, reward, kl in (("rgpo", 1.2, 2.0), ("ppo", 1.0, 4.0), ("grpo", 1.0, 1.0)):
            rewards = [0.0, 0.5 * reward, reward + noise]
            kls = [0.0, 0.5 * kl, kl * (1 + noise)]
            folders.append(write(tmp_path / f"{method}-{seed}", method, seed, rewards, kls))
    return folders
