"""The claims of the four papers' pre-training that the ablations test: what is said, where, and when it passes.

Ids, arms and rules follow the specification; beds are smaller (see `bed`), and each file says what differs.
"""

from lmx.eval.claims import Claim

TITLE = "Claims of four papers' pre-training, tested on small beds"
CLAIMS = (
    Claim(
        id="M1",
        statement=("Annealing the learning rate to zero lowers the loss, and averaging checkpoints helps a constant rate"),
        source="Llama 3.1, section 3.4.3",
        rule="linear < constant; constant + mean < constant; linear + mean <= linear + 0.002",
    ),
    Claim(
        id="M2",
        statement="Upsampling maths in the annealing raises maths at little cost elsewhere",
        source="Llama 3.1, section 3.4.3",
        rule="maths loss down by more than 0.02, general loss up by less than 0.01",
    ),
    Claim(
        id="M3",
        statement="Annealing half a run on 30% of a candidate ranks data by quality",
        source="Llama 3.1, section 3.1.3",
        rule="loss ranks clean < corrupted < random in every seed",
    ),
    Claim(
        id="M4",
        statement="Small batches early, larger ones later, save compute at no cost",
        source="Llama 3.1, section 3.4.1",
        rule="loss at 10% of the tokens lower, no more spikes, final loss not worse by more than 0.01",
    ),
    Claim(
        id="M5",
        statement="Attention confined to documents makes packing neutral",
        source="Llama 3.1, section 3.2",
        rule=(
            "repacking changes nothing; the gain on a document's first tokens is at least as large in long rows as in short ones"
        ),
    ),
    Claim(
        id="M6",
        statement="Context grown in gated steps reaches long lengths without harm",
        source="Llama 3.1, section 3.4.2",
        rule=("a gate log; needles found at the last length; short loss back within 0.01; staged at least as good as one jump"),
    ),
    Claim(
        id="M7",
        statement="Raising the RoPE base while lengthening lowers the loss at far positions",
        source="Qwen 2, section 3.2",
        rule="loss on the far half lower with the raised base; short loss back within 0.01",
    ),
    Claim(
        id="M8",
        statement="YaRN and dual chunk attention extend the context without training",
        source="Qwen 2, section 3.2",
        rule=(
            "loss at 4 times the length: far above with nothing, YaRN or DCA much lower, the best within 5% of "
            "the in-window loss; DCA identical inside the window"
        ),
    ),
    Claim(
        id="M9",
        statement="Filtered text beats more, unfiltered text at equal compute",
        source="Qwen 2, section 3.1",
        rule="clean held-out loss, filtered <= relaxed",
    ),
    Claim(
        id="M10",
        statement="Rules and deduplication find what is wrong in a crawl, and training gains by it",
        source="Llama 3.1, section 3.1.1",
        rule=("recall above 0.95 and precision above 0.9 for each injected fault; loss lower after the pipeline at equal tokens"),
    ),
    Claim(
        id="M11",
        statement="Small runs predict the ranking of data mixtures at a larger size",
        source="Llama 3.1, section 3.1.2",
        rule="Spearman's rank correlation >= 0.8; the chosen mixture beats uniform",
    ),
    Claim(
        id="M12",
        statement=(
            "A mixture of experts upcycled from a dense model beats one from scratch; redrawing weights makes experts differ"
        ),
        source="Qwen 2, section 2.2.2",
        rule=(
            "upcycled < scratch at equal extra tokens; redrawing lowers the experts' mean cosine and raises "
            "routing entropy over plain copies"
        ),
    ),
    Claim(
        id="M13",
        statement="The auxiliary loss balances experts at little cost",
        source="Qwen 2, section 2.2.2",
        rule="variation of expert load falls with the coefficient; language-model loss rises by less than 0.02",
    ),
    Claim(
        id="M14",
        statement="Model-written questions and answers in pre-training raise question answering",
        source="Qwen 2, section 3.1",
        rule="probe accuracy up at equal tokens, general loss within 0.01",
    ),
    Claim(
        id="G1",
        statement="Distillation beats labels at equal tokens",
        source="Gemma 2, Table 6",
        rule="held-out cross-entropy, distilled < labels",
    ),
    Claim(
        id="G2",
        statement="The gain of distillation holds as the student grows",
        source="Gemma 2, Table 7",
        rule="distilled - labels < 0 at every size; the gap at the largest at least half the smallest's",
    ),
    Claim(
        id="G3",
        statement="Distillation stands in for more tokens",
        source="Gemma 2, section 5",
        rule="tokens that labels need for the distilled loss > 1.5 times its own",
    ),
    Claim(
        id="G4",
        statement="On repeated text, labels overfit sooner than distillation",
        source="Gemma 2, section 5",
        rule="the labels' held-out loss turns up; distillation's minimum is lower and not earlier",
    ),
    Claim(
        id="G5",
        statement="Sampled or truncated teacher distributions approach the full one",
        source="Gemma 2, section 3.2",
        rule=(
            "the gap to full falls with the number of samples K, K = 64 within 0.01; renormalised top k is worse "
            "than top k with its tail"
        ),
    ),
    Claim(
        id="G6",
        statement="A larger teacher is better, up to a point (ours, not in the report)",
        source="ours, after Gemma 2, Table 7",
        rule="the gap to labels grows from a teacher of 0.5x to 3x; 6x as found",
    ),
    Claim(
        id="G7",
        statement="No labels are needed beside the teacher",
        source="Gemma 2, section 3.2",
        rule="distillation alone within 0.01 of half labels, half teacher",
    ),
    Claim(
        id="G8",
        statement="Local layers between global ones save cache at equal loss",
        source="Gemma 2, section 2",
        rule="alternating within 0.01 of all-global; KV elements as the formula says; all-local worse on a far copy",
    ),
    Claim(
        id="G9",
        statement="The window can shrink at inference",
        source="Gemma 2, Table 10",
        rule="cross-entropy rises by at most 0.02 at a quarter of the window; an all-local model loses more",
    ),
    Claim(
        id="G10",
        statement="Grouped-query attention matches multi-head attention",
        source="Gemma 2, Table 8",
        rule="within 0.01 at equal parameters; the cache halves exactly",
    ),
    Claim(
        id="G11",
        statement="Deeper is a little better than wider at equal parameters",
        source="Gemma 2, Table 9",
        rule="deep <= wide + 0.005",
    ),
    Claim(
        id="G12",
        statement="Soft caps bound logits and keep training stable",
        source="Gemma 2, section 2",
        rule="no logit above the cap; no more diverged runs at 8 times the rate",
    ),
    Claim(
        id="G13",
        statement="Norms before and after a block allow rates at least as high",
        source="Gemma 2, section 2",
        rule="highest stable rate with both >= before only; loss at the plain rate within 0.01",
    ),
    Claim(
        id="G14",
        statement="A mesh of devices changes nothing",
        source="Gemma 2, section 3.3",
        rule="loss and gradients equal to 1e-5 in float32 on 8 devices as 8x1, 2x4 and 1x8",
    ),
    Claim(
        id="A1",
        statement="muP-simple carries the learning rate over widths",
        source="AFM, section 3.2.2",
        rule=(
            "over 4 times the width the best rate moves by at most one step of the grid with it, and at least one step down without"
        ),
    ),
    Claim(
        id="A2",
        statement="AFM's recipe is near parity with a typical AdamW recipe",
        source="AFM, appendix A",
        rule="AFM's loss <= AdamW's + 0.01 at the base width and at 4 times it",
    ),
    Claim(
        id="A3",
        statement="Clipped updates soften spikes; undebiased momentum starts slowly",
        source="AFM, section 3.2.2",
        rule="loss jump after an injected spike smaller with the clip; early updates smaller without debiasing",
    ),
    Claim(
        id="A4",
        statement="A decay apart from the learning rate carries over widths",
        source="AFM, section 3.2.2",
        rule="best decay within one step of the grid at both widths",
    ),
    Claim(
        id="A5",
        statement="A pruned start beats a random one",
        source="AFM, section 3.2 and Table 2",
        rule="loss at 25% of the tokens and at the end: learned mask < random",
    ),
    Claim(
        id="A6",
        statement="Learned masks prune better than magnitude, and magnitude better than chance; pruning saves data",
        source="AFM, section 3.2",
        rule="learned <= magnitude <= random slice; tokens to reach the pruned arm's loss > 1.2 times",
    ),
    Claim(
        id="A7",
        statement="Soft top-k keeps exactly k; hard-concrete gates do not",
        source="AFM, section 3.2",
        rule="kept count exact; loss after the cut <= that of hard-concrete gates",
    ),
    Claim(
        id="A8",
        statement="Distilling a mix of 0.9 of the teacher's top-1 raises accuracy, at a price in raw cross-entropy",
        source="AFM, section 3.2",
        rule=(
            "accuracy at 0.9 above labels; raw cross-entropy worse; after a short tail on labels no worse; full "
            "distribution has the lowest"
        ),
    ),
    Claim(
        id="A9",
        statement="Pruning and distillation complement each other",
        source="AFM, Table 2",
        rule="both together better than each alone",
    ),
    Claim(
        id="A10",
        statement="The continued stage is better without distillation",
        source="AFM, section 3.2.4",
        rule="on up-weighted domains that the teacher was not continued on, exact match of labels >= distilled",
    ),
    Claim(
        id="A11",
        statement="The continued mixture raises maths and code",
        source="AFM, section 3.2",
        rule="maths and code loss down by more than 0.02, general up by less than 0.02",
    ),
    Claim(
        id="A12",
        statement="A low rate in the continued stage protects the rest",
        source="AFM, section 3.2",
        rule="general loss rises less with the low rate",
    ),
    Claim(
        id="A13",
        statement="The RoPE base of the formula is right for lengthening",
        source="AFM, section 3.2.3",
        rule="loss beyond the old length, formula < kept; short loss back within 0.01",
    ),
    Claim(
        id="A14",
        statement="Synthetic long questions and answers teach retrieval",
        source="AFM, section 3.2.3",
        rule="retrieval up at all depths; language-model loss within 0.01",
    ),
    Claim(
        id="A15",
        statement="Decontamination finds benchmark items and leaves the rest",
        source="AFM, section 3.1",
        rule=(
            "recall 1.0 on rare pieces of 4 words or more; precision 1.0 on near misses and common phrases; "
            "without the threshold over 10 times more clean documents fall"
        ),
    ),
    Claim(
        id="A16",
        statement="Planted benchmark items inflate scores; cleaning removes the effect",
        source="AFM, section 3.1",
        rule="score inflated by planted items; after cleaning equal to fresh items within two standard errors",
    ),
    Claim(
        id="A17",
        statement="Quality beats quantity",
        source="AFM, section 3.1",
        rule="clean held-out loss lower with the best 30%, repeated",
    ),
    Claim(
        id="A18",
        statement="The batch size matters little over a factor of four",
        source="AFM, section 3.2.2",
        rule="spread of held-out loss < 0.02",
    ),
    Claim(
        id="A19",
        statement="QK-norm allows higher rates",
        source="AFM, section 2",
        rule="stable at rates at least as high; its place before or after RoPE within noise",
    ),
)

BY_ID = {claim.id: claim for claim in CLAIMS}
