# %% [markdown]
# # 00 · Start here
#
# Somebody has an old, tiny, blurred picture of a person, and a few good photos of the same person taken at other times.
# How much of the face can be brought back, and how far can the result be trusted? That is the subject of this workbook.
#
# In this first notebook you restore a face, three times: without any help, with photos of the right person, and with
# photos of the *wrong* person. It takes less than a minute and needs no download, no graphics card and nobody's photo: the faces
# are drawn by a program, and the networks are small enough to ship with the workbook.
#
# **After this notebook you can**
# - run a reference-based restoration and compare the results by eye and by number,
# - say why the wrong reference photos are the most important experiment of the three,
# - say what a restored face must never be used for.

# %% tags=["parameters"]
profile = "toy"  # "toy": drawn faces and the networks that ship with the workbook; "paper": the published networks
seed = 0  # every random number below follows from it
people = 8  # how many people are restored
references = 4  # how many photos of each person help
preset = "toy-refldm-severe"  # how the pictures are ruined; "refldm-severe" for the paper profile
steps = 10  # denoising steps; notebook 03 explains them
hero = 4  # the person shown large

# %%
import time

import refbfr_core
from refbfr_core import metrics
from refbfr_core import notebook as nb
from refbfr_core.benchmark.cases import make_cases

book = nb.start("00_start_here", profile=profile, seed=seed)
pipe = refbfr_core.load_pipeline("refldm", profile=profile, device=str(book.device))
pipe.set_progress_bar_config(disable=True)

# %% [markdown]
# ## 1 · The people
#
# We draw a few people that no network here has ever seen. For each we take one picture and ruin it badly, and keep some
# other photos of the same person: other days, other light, another expression. These are the **reference photos**.

# %%
cases = make_cases(
    range(people), people, preset=preset, references=references, seed=seed, split="test", resolution=pipe.resolution
)
figure = nb.image_grid(
    [[cases.lq[hero], *cases.right[hero]]], column_labels=["ruined", *[f"reference {i + 1}" for i in range(references)]], cell=1.4
)
nb.show(figure, kind="jpg", alt="A drawn face ruined beyond recognition, and beside it sharp photos of the same person in other poses "
        "and light.")

# %% [markdown]
# What happened to the ruined picture, in order:

# %%
print(cases.degradations[hero].describe())

# %% [markdown]
# ## 2 · Restore it three times
#
# The method is ReF-LDM (Hsiao et al. 2024), in a small version. It starts from random noise and removes it step by step;
# at every step it looks at the ruined picture and, if it gets any, at the reference photos. The three runs use the same
# ruined pictures and the same noise; only the references differ.

# %%
started = time.perf_counter()
device = book.device
settings = {"num_inference_steps": steps, "seed": cases.seeds}
lq = cases.lq.to(device)
none = pipe(lq, **settings)
wrong = pipe(lq, cases.wrong.to(device), **settings)
right = pipe(lq, cases.right.to(device), **settings)
print(f"{3 * people} restorations in {time.perf_counter() - started:.0f} s")
print(right.settings)

# %% [markdown]
# Move the divider. (On a page that runs no scripts, such as GitHub, the two pictures stand side by side.)

# %%
nb.compare(
    cases.lq[hero],
    right.images[hero],
    labels=("ruined", "restored"),
    alt="The ruined face on the left of the divider and the face restored with photos of the same person on the right.",
)

# %%
arms = {"no photos": none, "wrong person's photos": wrong, "right person's photos": right}
rows = [[cases.lq[i], *[result.images[i] for result in arms.values()], cases.truth[i], cases.wrong[i, 0]] for i in range(min(people, 5))]
figure = nb.image_grid(
    rows, column_labels=["ruined", "restored:\nno photos", "restored:\nwrong photos", "restored:\nright photos", "truth", "the wrong\nperson"], cell=1.25
)
book.save(figure, "00_three_restorations", kind="jpg", people=people, references=references, preset=preset, steps=steps, max_bytes=110_000,
          alt="One row for each person: the ruined picture, restorations with no, wrong and right reference photos, the true picture, and "
          "the person whose photos were wrong.")

# %% [markdown]
# Take your time with this picture. Compare each restoration with the truth, and then with the person in the last column.
# Without photos the network invents a plausible face: look for hair that was never there. With the right photos, things
# come back that the ruined picture does not contain. With the wrong photos, features of a stranger appear, just as
# clearly. (Eyes and mouths stay soft in all columns: the network is small and was trained for about an hour.)
#
# ## 3 · Measure it
#
# *IDS* is the identity similarity: how alike two faces are to the **judge**, a network that was trained to tell drawn
# people apart and took no part in training the restorer. 1 is the same, 0 is unrelated. *PSNR* compares pixels, in
# decibels (notebook 01). For the wrong photos we also ask the judge how similar the result is to the *wrong* person.

# %%
truth, stranger = cases.truth.to(device), cases.wrong[:, 0].contiguous().to(device)
pictures = {"ruined, not restored": lq, **{name: result.images for name, result in arms.items()}}
to_truth = {name: metrics.compute("ids", x, truth).cpu() for name, x in pictures.items()}
to_stranger = {name: metrics.compute("ids", x, stranger).cpu() for name, x in pictures.items()}
psnr = {name: metrics.compute("psnr", x, truth).cpu() for name, x in pictures.items()}
nb.table(
    [
        {
            "restored with": name,
            "IDS to the true person": float(to_truth[name].mean()),
            "IDS to the wrong person": float(to_stranger[name].mean()),
            "PSNR (dB)": float(psnr[name].mean()),
        }
        for name in pictures
    ],
    caption=f"Means over {people} people the networks have never seen; {references} reference photos each",
)

# %% [markdown]
# Read the row of the wrong photos first: which of the two people does the judge see in the result?
#
# A mean over a few people can be luck. So we look at the *difference* for each person (the same ruined picture, the same
# noise) and at an interval for its mean: if many sets of so many people were drawn, about 95 % of such intervals would
# contain the true mean. If the interval stays away from zero, the effect is not luck.

# %%
gain = to_truth["right person's photos"] - to_truth["no photos"]
gap = to_truth["right person's photos"] - to_truth["wrong person's photos"]
print("right photos − no photos:   ", metrics.mean_interval(gain))
print("right photos − wrong photos:", metrics.mean_interval(gap))

# %% [markdown]
# The paper reports the same comparison for photographs: its network without references, and with them, on its severe
# test set. The two columns below are different experiments (drawn faces and photographs, small and large networks, two
# different judges); compare the direction and the rough size of the effect, not the digits.

# %%
reported = {"no photos": 0.231, "right person's photos": 0.676}  # Hsiao et al. 2024, table 7: LDM and ReF-LDM, FFHQ-Ref-Severe
nb.beside_paper(
    [
        *[(f"IDS, {name}", float(to_truth[name].mean()), value, "table 7, FFHQ-Ref-Severe") for name, value in reported.items()],
        ("gain from references", float(gain.mean()), reported["right person's photos"] - reported["no photos"], "difference"),
    ],
    caption="Identity similarity, measured here and reported for photographs",
)

# %% [markdown]
# ## 4 · A restored face is a guess
#
# You have just seen the most important lesson of this workbook. The three restorations of one ruined picture look about
# equally convincing, and at most one of them can be right. The network cannot tell you which: with the wrong photos it
# produces a sharp face with features of somebody who was never there. In a real case nobody holds the truth beside it.
#
# - **Never use a restored face as evidence**, to identify anybody, or to decide anything about a person.
# - **Say that a picture was restored**, and with what, wherever you show it.
# - **Restore only with consent**: of the person in the picture and of the people in the reference photos.
# - **Ask who is missing.** Photo collections do not show all people equally often, and methods work worse for those who are
#   rare in them. The drawn people here cover the whole Monk scale of skin tones evenly; photographs do not.
#
# The faces in this workbook are drawn, so none of the people exists and nobody is harmed while you learn.
#
# ## 5 · What you will learn
#
# | notebook | question |
# |---|---|
# | [01 · Faces as tensors](01_faces_as_tensors.ipynb) | What is a picture to a network? Who are the drawn people, and what does a face embedder measure? |
# | [02 · How faces are ruined](02_how_faces_are_ruined.ipynb) | What exactly destroys a face, and which information is really gone? |
# | [03 · Diffusion from scratch](03_diffusion_from_scratch.ipynb) | How can a network that only recognises noise restore a face? |
#
# Each notebook begins with its goals and its measured time, goes from a formula to code to a picture, and ends with checks
# that can fail and with exercises. All of them run on two laptop cores.
#
# ## Checks

# %%
nb.check_above(float(gain.mean()), 0.0, "photos of the right person help (mean IDS)")
nb.check_interval_above(gap, 0.0, "right photos beat wrong photos, paired by person")
wrong_arm = "wrong person's photos"
nb.check_interval_above(to_stranger[wrong_arm] - to_stranger["no photos"], 0.0, "wrong photos pull the face towards the wrong person")
again = pipe(lq[hero : hero + 1], cases.right[hero : hero + 1].to(device), num_inference_steps=steps, seed=cases.seeds[hero])
nb.check_close(again.images[0].cpu(), right.images[hero].cpu(), 1.01 / 255, "alone or in the batch: the same picture up to one grey level")
nb.check_above(float(psnr["right person's photos"].mean()), float(psnr["ruined, not restored"].mean()),
               "the restoration is closer to the truth than the ruined picture (mean PSNR)")

# %% [markdown]
# ## Exercises
#
# **1.** How many photos does it take? Restore with one, two and four reference photos and compare IDS.
#
# <details><summary>Solution</summary>
#
# ```python
# for count in (1, 2, 4):
#     result = pipe(lq, cases.right[:, :count].contiguous().to(device), **settings)
#     print(count, float(metrics.compute("ids", result.images, truth).mean()))
# ```
#
# The first photo brings most of the gain. The paper reports the same shape: IDS 0.52, 0.62 and 0.65 with up to one,
# three and five photos (table 5; a shorter training than the main result).
#
# </details>
#
# **2.** Set `preset = "toy-refldm-moderate"` in the parameters cell and run the notebook again. What happens to the gain
# from references, and why?
#
# <details><summary>Solution</summary>
#
# The gain shrinks: a mildly damaged picture says itself who it shows, so the photos have little to add. The checks at
# the end are written for severe damage, and some may fail; a check that fails is an answer, too.
#
# </details>
#
# **3.** The sampler starts from random noise. Restore the same face with ten different seeds, without photos and with
# the right ones. In which case do the results differ more?
#
# <details><summary>Solution</summary>
#
# ```python
# def ten(refs):
#     one = lq[hero : hero + 1].expand(10, -1, -1, -1).contiguous()
#     refs = None if refs is None else refs[hero : hero + 1].expand(10, -1, -1, -1, -1).contiguous().to(device)
#     return pipe(one, refs, num_inference_steps=steps, seed=100).images
#
# print("no photos:", float(ten(None).std(dim=0).mean()), " right photos:", float(ten(cases.right).std(dim=0).mean()))
# ```
#
# The spread is what the network does not know. With photos it knows more, so the results should agree better, above
# all in the face. Look at the pictures as well: `nb.image_grid(ten(None))`.
#
# </details>
#
# ## At full scale
#
# The published ReF-LDM restores photographs of 512 × 512 pixels. It was trained on 20,405 pictures of 6,523 people grouped
# by identity (FFHQ-Ref), for hundreds of thousands of steps, and restores one picture with five references in a few seconds
# on a graphics card. With the authors' weights (`refbfr weights --help`) this notebook runs on them with
# `profile = "paper"` and `preset = "refldm-severe"`; on drawn faces, for which those weights were not made.
#
# ## References
#
# - C.-W. Hsiao, Y.-L. Liu, C.-K. Yang, S.-P. Kuo, K. Jou, C.-P. Chen: *ReF-LDM: A Latent Diffusion Model for
#   Reference-based Face Image Restoration*, NeurIPS 2024.
# - E. Monk: *The Monk Skin Tone Scale*, 2019.
# - B. Efron: *Bootstrap Methods: Another Look at the Jackknife*, The Annals of Statistics, 1979 (the intervals).
