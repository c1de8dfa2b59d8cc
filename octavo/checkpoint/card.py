"""The model card (README.md) that is written beside converted weights."""

from collections.abc import Mapping
from typing import Any

from octavo.config import ModelConfig

_PLAIN = "It loads in transformers (`AutoModelForCausalLM.from_pretrained`) as well."
_QUANTISED = (
    "Its matrices are quantised in groups of 32 with an fp16 scale each (`quant_method: octavo`), routers and norms "
    "are fp32. Only octavo reads this form; `octavo convert` turns it into a folder that transformers loads."
)


def model_card(name: str, config: ModelConfig, lineage: Mapping[str, Any], licence: str | None) -> str:
    """Markdown with front matter: what the model is, how it was made, what was proven, how to run it."""
    quantised = "bits" in lineage["proof"]
    tags = "octavo, mixture-of-experts" if config.has_experts else "octavo"
    front = [
        "---",
        f"license: {licence}" if licence else None,
        f"library_name: {'octavo' if quantised else 'transformers'}",
        "pipeline_tag: text-generation",
        f"tags: [{tags}, {lineage['dtype']}]" if quantised else f"tags: [{tags}]",
        "---",
    ]
    shape = f"{config.num_layers} layers, width {config.hidden_size}, vocabulary {config.vocab_size}"
    if config.has_experts:
        shape += f", {config.num_experts} experts, {config.top_k} per token"
    text = f"""
# {name}

{shape}. Made with `{lineage["made_by"]}` from {lineage["parent"]}{_how(lineage)}, stored as {lineage["dtype"]}.
{_proof(lineage)}
```python
import octavo

model, tokenizer = octavo.load("{name}")
print(octavo.generate(model, tokenizer, "The capital of France is", max_new_tokens=8))
```

{_QUANTISED if quantised else _PLAIN} `SHA256SUMS` lists the checksum of every
file (`octavo verify {name}` or `sha256sum -c SHA256SUMS`); `octavo.json` records how the weights were made.
"""
    return "\n".join(line for line in front if line) + "\n" + text


def _how(lineage: Mapping[str, Any]) -> str:
    if "method" not in lineage:
        return ""
    experts = {
        "copy": "each expert starts as the parent's feed-forward",
        "permute": "each expert starts as the parent's feed-forward, its hidden units in an order of its own",
        "split": f"each expert starts as 1/{lineage['granularity']} of the parent's feed-forward",
        "drop": f"each expert starts as the parent's feed-forward, {percent(lineage['drop_share'])} of its units new",
    }
    method, router = lineage["method"], f"router {lineage['router_init']}, seed {lineage['seed']}"
    return f" (method {method}: {experts[method]}; {router})"


def _proof(lineage: Mapping[str, Any]) -> str:
    proof, window = lineage["proof"], lineage.get("equal_up_to_context")
    rounded = f" rounded to {proof['rounded_to']}" if proof["rounded_to"] else ""
    if "bits" in proof:
        return (
            f"\n**It does not compute quite what its parent does.** On {proof['tokens']} random ids its logits differ "
            f"from the parent's by up to {proof['unrounded_max_difference']:.2g} (RMS "
            f"{proof['unrounded_rms_difference']:.2g}) at logits up to {proof['largest_logit']:.0f}. They equal those "
            f"of the parent with its weights rounded to {lineage['dtype']} within {proof['max_difference']:.1e} (RMS "
            f"{proof['rms_difference']:.1e}), both computed in fp32.\n"
        )
    if lineage.get("exact", True):
        text = f"\nOn {proof['tokens']} random ids its logits equal the parent's{rounded} within "
    else:
        text = (
            f"\n**It does not compute what its parent does.** On {proof['tokens']} random ids its logits differ from "
            f"the parent's{rounded} by up to {proof['stored_max_difference']:.2g} (RMS "
            f"{proof['stored_rms_difference']:.2g}): it is meant to be trained first. With the parent's hidden units "
            "put back in place of the new ones they equal the parent's within "
        )
    text += (
        f"{proof['max_difference']:.1e} (RMS {proof['rms_difference']:.1e}) at logits up to "
        f"{proof['largest_logit']:.0f}, both computed in fp32.\n"
    )
    if window:
        text += f"The parent's sliding window was dropped: equality is stated within {window} tokens.\n"
    return text


def percent(share: float) -> str:
    """A share for people, rounded neither to nothing nor to all: 0.4%, 50%, 99.9%."""
    return f"{share:.0%}" if 0.01 <= share <= 0.99 or share in (0, 1) else f"{100 * share:.3g}%"
