"""Take a quarter out of a model in two ways, look at what went, and save one of them.

Runs within a minute on two CPU cores; the numbers are small for that. Give a folder or a hub id as
argument for a model of your own.
"""

import sys

import streamline as sl

model, tokenizer = sl.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")

# One session: both methods decide by the same calibration pass.
with sl.session(model, tokenizer, n_samples=2, length=256) as session:
    short = session.prune("shortgpt", sparsity=0.25)
    ffn = session.prune(
        "llm-streamline-ffn",  # one trained network replaces the layers
        sparsity=0.25,
        train=sl.Recipe(
            n_tokens=2_048,
            length=256,
            epochs=1,
            batch_tokens=256,
            learning_rate=1e-3,
            normalize=True,
            validation_tokens=256,
            evaluations=0,
        ),
    )

for pruned in (short, ffn):
    print(pruned)
    print("  layers removed:", *pruned.plan.removed_layers)
for training in ffn.training.values():
    print(f"  validation loss: {training['before']:.3f} before, {training['best']:.3f} after")

hf = short.model  # a plain transformers model
inputs = tokenizer("The capital of France is", return_tensors="pt").to(hf.device)
print(tokenizer.decode(hf.generate(**inputs, max_new_tokens=8, do_sample=False)[0]))
print("saved in", short.save("out/short"))
