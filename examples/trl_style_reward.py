"""A reward written for TRL, unchanged: `reward.functions=[examples/trl_style_reward.py:shows_work]`."""


def shows_work(completions, reference, log_metric=None, **columns):
    """1 when the thinking holds an equation, None (does not apply) for differences."""
    texts = [completion[0]["content"] for completion in completions]
    scores = [1.0 if "=" in text.partition("</think>")[0] else 0.0 for text in texts]
    if log_metric is not None:
        log_metric("shows_work/share", sum(scores) / len(scores))
    families = columns.get("family", [""] * len(texts))
    return [None if family == "gap" else score for score, family in zip(scores, families, strict=True)]
