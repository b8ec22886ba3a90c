"""The released code of MEND and MetaICL, made importable under today's packages, for the scripts that make golden files. Never needed by a user.

    git clone https://github.com/bigheiniu/MEND              && git -C MEND checkout 169e60d
    git clone https://github.com/facebookresearch/MetaICL    && git -C MetaICL checkout ec0f1c1

Both into one folder outside this repository: their licences are not ours, nothing of them is copied here. What is bent to import them:
- packages that only their downloads and logs use (datasets, pandas) are empty stand-ins;
- the distiller's base class was GPT2Model of transformers 4.3x: its forward took its arguments by position, head_mask among them;
- a four-dimensional attention mask was meant to be added to the scores beside the causal mask, but that GPT2Model flattened any mask to
  [batch, -1] and failed; today's takes such a mask for the whole truth and would drop the causal one. Here both are applied.
"""
import logging
import os
import subprocess
import sys
import types

COMMITS = {"MEND": "169e60d", "MetaICL": "ec0f1c1"}


def _stand_in(name, **attributes):
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    if name in sys.modules:
        return []
    sys.modules[name] = module
    return [name]


def _check(folder):
    for name, commit in COMMITS.items():
        path = os.path.join(folder, name)
        found = subprocess.run(["git", "-C", path, "rev-parse", "HEAD"], stdout=subprocess.PIPE, text=True).stdout
        if not found.startswith(commit):
            sys.exit("%s: wanted a clone of %s at %s" % (path, name, commit))


def load(folder):
    """Import the released modules from clones in folder; returns a namespace: DistillModel, ModelArguments, collate, DistillDataset, MetaICLData, MetaICLModel."""
    _check(folder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers
    from transformers.models.gpt2 import modeling_gpt2
    logging.getLogger().setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    class OldGPT2Model(transformers.GPT2Model):
        def forward(self, input_ids=None, past_key_values=None, attention_mask=None, token_type_ids=None, position_ids=None, head_mask=None,
                    inputs_embeds=None, encoder_hidden_states=None, encoder_attention_mask=None, use_cache=None, output_attentions=None,
                    output_hidden_states=None):
            assert past_key_values is None and head_mask is None and encoder_hidden_states is None
            if attention_mask is not None and attention_mask.dim() == 4:
                n = attention_mask.shape[-1]
                causal = torch.ones(n, n, dtype=torch.bool).tril()
                attention_mask = torch.where(causal, attention_mask, torch.finfo(self.dtype).min)
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids,
                                   inputs_embeds=inputs_embeds)

    nothing = type("Nothing", (), {})
    standing = _stand_in("datasets", Dataset=nothing, DatasetDict=nothing, load_from_disk=None, load_dataset=None) + _stand_in("pandas")
    sys.path.insert(0, os.path.join(folder, "MetaICL"))
    sys.path.insert(0, os.path.join(folder, "MEND"))
    new = transformers.GPT2Model
    transformers.GPT2Model = modeling_gpt2.GPT2Model = OldGPT2Model
    try:
        from src.model_distill import DistillModel
        from src.dataset_distill import DistillDataset, data_collator_with_padding
        from distill_training_args import ModelArguments
        sys.modules["transformers"].AdamW = torch.optim.AdamW  # the package puts another module object in its place while it loads
        from metaicl.data import MetaICLData
        from metaicl.model import MetaICLModel
    finally:
        transformers.GPT2Model = modeling_gpt2.GPT2Model = new
        for name in standing:  # other packages look whether pandas is loaded
            del sys.modules[name]
    return types.SimpleNamespace(DistillModel=DistillModel, ModelArguments=ModelArguments, collate=data_collator_with_padding,
                                 DistillDataset=DistillDataset, MetaICLData=MetaICLData, MetaICLModel=MetaICLModel)
